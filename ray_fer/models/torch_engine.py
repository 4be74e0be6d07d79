"""Inference by torch, and the conversion of a torch net to a graph for OpenVINO.

Importing this module imports torch and timm, which takes seconds.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from timm.models import load_checkpoint

from ray_fer.data.decode import Pixels
from ray_fer.errors import UserError, one_line
from ray_fer.models.artifact import CONFIG, Artifact, load_model
from ray_fer.models.backbone import check_backbone, check_forward
from ray_fer.models.depth_net import WithFeatures
from ray_fer.models.teacher import TimmTeacher
from ray_fer.models.weights import check_finite, state_of

if TYPE_CHECKING:
    import openvino

# The weights of red, green and blue in grey (ITU-R BT.601), as in Pillow, OpenCV and OpenVINO.
LUMA = (0.299, 0.587, 0.114)
Logits = npt.NDArray[np.float32]


class Normalised(torch.nn.Module):
    """A model over uint8 NHWC pixels, which it scales to [0, 1] and normalises for the backbone.

    Args:
        model: Maps float (B, C, S, S) to logits (B, K), or to logits and features (B, D).
        mean: The mean of each of the C channels, for pixels in [0, 1]; with one channel, the model sees grey.
        std: The standard deviation of each channel.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, model: torch.nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)))
        self.register_buffer("shift", -torch.tensor(mean) / torch.tensor(std))

    def forward(self, pixels: torch.Tensor) -> Any:
        """What the model puts out for ``pixels`` uint8 (B, S, S, 3)."""
        x = pixels.to(self.scale.dtype)
        if len(self.scale) == 1:
            x = (x * x.new_tensor(LUMA)).sum(dim=3, keepdim=True)
        x = x * self.scale + self.shift
        return self.model(x.permute(0, 3, 1, 2))


class TorchEngine:
    """The net's own logits by torch, channels-last.

    Args:
        teacher: The model, which is loaded.
        device: ``cpu`` or ``cuda``.
        precision: ``float32``, or ``bfloat16`` for autocast.
        embed: Whether `embed` will be called.

    Raises:
        UserError: If the weights cannot be loaded, or timm does not know the depths of the net.
    """

    def __init__(
        self, teacher: Artifact | TimmTeacher, *, device: str = "cpu", precision: str = "float32", embed: bool = False
    ) -> None:
        self.device = torch.device(device)
        self.autocast = precision == "bfloat16"
        model = normalised(teacher, embed).to(self.device).eval()
        self.model = model.to(memory_format=torch.channels_last)

    def __call__(self, pixels: Pixels) -> Logits:
        """Logits float32 (B, K) of ``pixels`` uint8 (B, S, S, 3)."""
        return self._run(pixels)[0]

    def embed(self, pixels: Pixels) -> tuple[Logits, Logits]:
        """Logits float32 (B, K) and features float32 (B, D) of ``pixels`` uint8 (B, S, S, 3)."""
        logits, features = self._run(pixels)
        return logits, features

    @torch.inference_mode()
    def _run(self, pixels: Pixels) -> list[Logits]:
        batch = torch.from_numpy(pixels).to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            out = self.model(batch)
        return [each.float().cpu().numpy() for each in (out if isinstance(out, tuple) else (out,))]


def normalised(teacher: Artifact | TimmTeacher, embed: bool = False) -> Normalised:
    """Loads the net of ``teacher`` with its normalisation, and with ``embed`` gives it its features as second output.

    Raises:
        UserError: If the weights cannot be loaded, or timm does not know the depths of the net.
    """
    model = load_timm(teacher) if isinstance(teacher, TimmTeacher) else load_model(teacher)
    if embed:
        try:
            model = WithFeatures(model)
        except ValueError as error:
            raise UserError(f"embed=true: teacher={teacher.uri}: {error}") from None
    return Normalised(model, teacher.mean, teacher.std)


def depths_of(teacher: Artifact | TimmTeacher) -> list[int]:
    """The depths of the features of ``teacher``, whose logits are compared with those of the net alone.

    Raises:
        UserError: If timm cannot give both from one forward pass.
    """
    net: Any = normalised(teacher, embed=True).model.eval()
    try:
        with torch.inference_mode():
            x = torch.rand(2, len(teacher.mean), teacher.net_size, teacher.net_size)
            same = torch.equal(net(x)[0], net.model(x))
    except Exception as error:  # every module of timm may raise its own
        raise UserError(f"embed=true: teacher={teacher.uri}: gives no features ({one_line(error)})") from None
    if not same:
        raise UserError(f"embed=true: teacher={teacher.uri}: timm gives other logits of it beside its features")
    return [int(depth) for depth in net.depths]


def converted(teacher: Artifact | TimmTeacher, batch_size: int, embed: bool = False) -> openvino.Model:
    """Converts `normalised` to a graph for OpenVINO with the fixed input uint8 (batch_size, S, S, 3).

    Raises:
        UserError: If the weights cannot be loaded.
    """
    import openvino

    example = torch.zeros(batch_size, teacher.net_size, teacher.net_size, 3, dtype=torch.uint8)
    model = normalised(teacher, embed).eval()
    with warnings.catch_warnings():  # openvino traces with a deprecated function of torch
        warnings.simplefilter("ignore")
        return openvino.convert_model(model, example_input=example, input=[tuple(example.shape)])


def load_timm(teacher: TimmTeacher) -> torch.nn.Module:
    """The timm model with the checkpoint's weights, on the CPU, in evaluation mode.

    Raises:
        UserError: If timm has no such architecture, or the weights do not fit it.
    """
    said = teacher.sidecar
    try:
        check_backbone(said.architecture)
    except UserError as error:
        raise UserError(f"{teacher.sidecar_uri}: architecture: {error}") from None
    what = f"a {said.architecture} of {len(said.classes)} classes at {said.image_size} px"
    arguments = teacher.model_args | {"num_classes": len(said.classes)}
    if said.channels != 3:
        arguments |= {"in_chans": said.channels}
    try:
        model: torch.nn.Module = timm.create_model(
            said.architecture,
            pretrained_cfg_overlay={"input_size": (said.channels, said.image_size, said.image_size)},
            **arguments,
        )
    except Exception as error:  # every module of timm may raise its own
        place = f"{teacher.uri}/{CONFIG}: model_args: {teacher.model_args}" if teacher.model_args else teacher.uri
        raise UserError(f"{place}: there is no such {what[2:]}: {one_line(error)}") from None
    try:
        load_checkpoint(model, str(teacher.path), use_ema=True, weights_only=True)
        check_forward(model, len(said.classes), said.image_size, said.channels)
    except Exception as error:
        raise UserError(f"{teacher.uri}: its weights do not fit {what}: {one_line(error)}") from None
    check_finite(teacher.uri, state_of(model))
    return model.eval()
