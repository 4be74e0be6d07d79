"""The configs of the jobs that the loop runs, made from its own, and whether they are those of a round that is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray_fer import storage
from ray_fer.config import layered, section_config
from ray_fer.errors import UserError
from ray_fer.jobs.config import SelfTrainConfig
from ray_fer.labeling.config import PseudoLabelConfig, SelectPseudoLabelsConfig
from ray_fer.methods.config import TrainBackboneConfig
from ray_fer.models.model_id import made_with

FROM_TEACHER = "teacher"
_SHARED = ("labeled", "val", "feedback_val", "seed", "feedback_parts")
_SET_BY_LOOP = {
    "train": (*_SHARED, "out", "init", "pseudo", "feedback"),
    "student": (*_SHARED, "out", "pseudo", "feedback"),
    "label": ("source", "teacher", "table", "select", "feedback", "selection", "watch", "dry_run"),
}


class LoopConfigs:
    """See the module.

    Args:
        config: Of the loop.

    Raises:
        UserError: for a key in a section that the loop sets itself.
    """

    def __init__(self, config: SelfTrainConfig) -> None:
        self.config = config
        self.out = storage.normalise(config.out)
        for section, keys in _SET_BY_LOOP.items():
            if taken := sorted(set(getattr(config, section)) & set(keys)):
                raise UserError(f"self_train: {section}.{taken[0]}: set by the loop")

    def place(self, *parts: str) -> str:
        """A URI under ``out``."""
        return storage.join(self.out, *parts)

    def teacher_config(self) -> TrainBackboneConfig:
        """The training of the first teacher."""
        return self._train_config("train", "teacher", self.config.train, {})

    def other_configs(self) -> list[TrainBackboneConfig | str]:
        """The trainings of the further teachers, and the URIs of those that are taken as they are."""
        found: list[TrainBackboneConfig | str] = []
        for number, given in enumerate(self.config.teachers, 2):
            if isinstance(given, str):
                found.append(given)
                continue
            section = f"teachers[{number - 2}]"
            if taken := sorted(set(given) & set(_SET_BY_LOOP["train"])):
                raise UserError(f"self_train: {section}.{taken[0]}: set by the loop")
            values = layered(TrainBackboneConfig, self.config.train, given)
            found.append(self._train_config(section, f"teacher-{number}", values, {}))
        return found

    def student_config(self, number: int, teacher: str) -> TrainBackboneConfig:
        """The training of the student of a round, from what ``teacher`` labelled."""
        folder = f"round-{number}"
        mine = dict(self.config.student)
        if mine.get("init") == FROM_TEACHER:
            mine["init"] = teacher
        fixed = {"pseudo": self.place(folder, "selection"), "feedback": self.place("feedback")}
        values = layered(TrainBackboneConfig, self.config.train, mine)
        return self._train_config("student", f"{folder}/student", values, fixed)

    def _train_config(
        self, section: str, place: str, values: Mapping[str, Any], fixed: Mapping[str, Any]
    ) -> TrainBackboneConfig:
        shared = {key: getattr(self.config, key) for key in _SHARED}
        start = {"pretrained": self.config.pretrained} if self.config.pretrained else {}
        values = {**start, **values}
        if values.get("init"):
            values["pretrained"] = None
        config: TrainBackboneConfig = section_config(
            f"self_train: {section}",
            "train_backbone",
            {**self._where(values), **values, **shared, **fixed, "out": self.place(place)},
        )
        return config

    def label_config(self, teacher: list[str]) -> PseudoLabelConfig:
        """The labelling by one or several teachers."""
        fixed = {"source": self.config.model_dump()["source"], "teacher": teacher, "table": self.place("predictions")}
        label = self.config.label
        config: PseudoLabelConfig = section_config(
            "self_train: label",
            "pseudo_label",
            {**self._where(label), **label, **fixed, "select": None, "feedback": None},
        )
        return config

    def _where(self, section: Mapping[str, Any]) -> dict[str, Any]:
        """The loop's ``device`` and ``workers`` for a job whose section has none of its own."""
        own = {"device": self.config.device, "workers": self.config.workers}
        return {"device": own["device"]} if "actors" in section else own

    def labelled_by(self, teacher: str) -> list[str]:
        """The first teacher of a round, and the further ones."""
        return [teacher, *(each if isinstance(each, str) else each.out for each in self.other_configs())]

    def select_config(self, number: int, teacher: list[str]) -> SelectPseudoLabelsConfig:
        """The selection of a round, of what its teachers labelled."""
        mine = dict(self.config.selection)
        # A picture with a true label needs no pseudo-label, and one of the validation set must not have any.
        held_out = [uri for uri in (self.config.val, self.config.feedback_val) if uri]
        mine["exclude"] = [self.config.labeled, *held_out, *mine.get("exclude", ())]
        config: SelectPseudoLabelsConfig = section_config(
            "self_train: selection",
            "select_pseudo_labels",
            {
                "table": self.place("predictions"),
                "teacher": teacher,
                "out": self.place(f"round-{number}", "selection"),
                "feedback": self.place("feedback"),
                "flip": self.config.label.get("flip"),
                "faces": self.config.label.get("faces"),
                "selection": mine,
            },
        )
        return config


def other_settings(asked: Mapping[str, Mapping[str, Any]], found: Mapping[str, Any]) -> list[str]:
    """What a selection was made with that is not what is asked for now, as ``section.key=value``.

    Args:
        asked: ``selection`` and ``label``, every key of theirs that can be asked for.
        found: ``selection.json``. What it does not say, as an older version's may not, is no difference.
    """
    told = {f"selection.{key}": value for key, value in (found.get("rule") or {}).items()}
    for model in found.get("models") or [found.get("model")]:
        if model:
            told |= {f"label.{key}": value for key, value in made_with(model).items()}
    now = {f"{section}.{key}": value for section, values in asked.items() for key, value in values.items()}
    if now.get("label.precision") == "auto":
        told.pop("label.precision", None)
    return [f"{key}={told[key]}" for key in sorted({*told} & {*now}) if _spelt(told[key]) != _spelt(now[key])]


def _spelt(value: Any) -> Any:
    return [storage.normalise(uri) for uri in value] if isinstance(value, list) else value
