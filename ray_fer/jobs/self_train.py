"""The loop: label → select → train a student → validate → feed back, round after round.

Every step is a job of its own whose result lies under ``out`` and which answers at once when it is asked again; this
file only puts them in order. So there is no state to lose: what a round has is what is there, ``round.json`` is
written last, and the same command after any interruption goes on where it was. A round labels whatever the sources hold
when it begins; its selection is then kept, so that a student which is trained in two sittings learns from one set.

    out/teacher/                   from labelled faces alone; teacher-2/, … are the further ones
    out/predictions/               of every teacher, a Delta table
    out/feedback/                  versions of the feedback state
    out/round-N/selection/         pseudo-labels
    out/round-N/student/           becomes the teacher if it is better on the choice half of the validation set
    out/report.html

A round without a better student would be followed by one of the same teacher over much the same pictures, so
``patience`` of them end the loop. They are counted among the rounds that one and the same ``rounds`` asked for: the
same command again says the same, and asking for more rounds, when new buckets have come, goes on. Other settings than
those of a round that is done are refused: the answer would be of both.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ray_fer import cluster, storage
from ray_fer.data.sources import check_sources
from ray_fer.documents import read_document
from ray_fer.errors import UserError, prefixed
from ray_fer.evaluation.halves import prior_helps
from ray_fer.feedback.actor import get_feedback_actor, update
from ray_fer.feedback.store import FeedbackStore
from ray_fer.jobs.backbone_inputs import open_start
from ray_fer.jobs.config import SelfTrainConfig
from ray_fer.jobs.head_loop import head_loop
from ray_fer.jobs.loop_configs import FROM_TEACHER, LoopConfigs, other_settings
from ray_fer.jobs.pseudo_label import pseudo_label
from ray_fer.jobs.scores import scores_of_halves
from ray_fer.jobs.select_pseudo_labels import predicted_counts, select_pseudo_labels
from ray_fer.jobs.train_backbone import check_trained, train_backbone
from ray_fer.labeling.config import SelectPseudoLabelsConfig
from ray_fer.labeling.exclusions import read_exclusions
from ray_fer.models.artifact import Artifact, open_artifact
from ray_fer.models.records import Round
from ray_fer.models.teacher import open_teacher
from ray_fer.reports.loop import loop_report
from ray_fer.resources import check_device
from ray_fer.selection import file as selection_file
from ray_fer.training import lease

log = logging.getLogger(__name__)

Summary = dict[str, Any]


def self_train(config: SelfTrainConfig) -> Summary:
    """Runs the rounds that are not done yet.

    Args:
        config: see ``conf/self_train.yaml``.

    Returns:
        ``model`` (URI of the best model), its ``macro_f1`` and the ``teacher_macro_f1`` of labelled faces alone (each
        of ``val``, ``choice`` and ``feedback`` half), ``rounds`` (what each did), ``stopped`` (why before all rounds
        were done, or None) and ``report``; with ``loop=head`` what `head_loop` returns.

    Raises:
        UserError: for bad input, before any cluster work where it can be known by then.
    """
    check_device(config.device)
    if config.loop == "head":
        return head_loop(config)
    if config.distil or config.head:
        raise UserError("distil and head: keys of loop=head")
    loop = _Loop(config)
    loop.check()
    loop.check_exclusions()
    with lease.held(loop.out):
        return _run(loop)


def _run(loop: _Loop) -> Summary:
    config = loop.config
    first = loop.train_teacher()
    teacher, rounds, stopped = first, [], None
    for number in range(1, config.rounds + 1):
        rounds.append(loop.round(number, teacher))
        teacher = open_artifact(rounds[-1]["teacher"])
        if number < config.rounds and (stopped := why_stop(rounds, config.rounds, config.patience)):
            log.info("%s", stopped)
            break
    report = storage.join(loop.out, "report.html")
    history = FeedbackStore(loop.place("feedback"), first.classes, config.feedback_parts).history()
    storage.write_bytes(report, loop_report(first, teacher, rounds, history, stopped).encode())
    return {
        "model": teacher.uri,
        "macro_f1": scores_of_halves(teacher),
        "teacher_macro_f1": scores_of_halves(first),
        "rounds": rounds,
        "stopped": stopped,
        "report": report,
    }


def replaces(student: float, teacher: float) -> tuple[bool, str]:
    """Whether the student becomes the teacher, and why; by macro-F1 on the choice half, where a tie changes nothing."""
    better = student > teacher
    verdict = "the student replaces it" if better else "the teacher stays"
    scores = f"the student's macro-F1 is {100 * student:.2f}, the teacher's {100 * teacher:.2f}"
    return better, f"on the choice half of val {scores}: {verdict}"


def why_stop(rounds: Sequence[Summary], asked: int, patience: int) -> str | None:
    """Why no further round is worth its time, or None.

    Args:
        rounds: what ``round.json`` holds, of all rounds so far.
        asked: ``rounds`` of this command.
        patience: rounds in a row without a better student that end the loop.
    """
    fruitless = 0
    for done in reversed(rounds):
        if done["teacher"] == done["student"] or done["asked"] != asked:
            break
        fruitless += 1
    if fruitless < patience:
        return None
    last = rounds[-1]["round"]
    return f"stopped after round {last} of {asked}: no better student in {fruitless} of patience={patience} rounds"


class _Loop(LoopConfigs):
    """The loop: its checks and its rounds."""

    def check(self) -> None:
        """Finds what is wrong with the sections and the sources before anything is started."""
        sections = {"train": self.teacher_config(), "student": self.student_config(1, FROM_TEACHER)}
        for number, other in enumerate(self.other_configs()):
            if isinstance(other, str):
                with prefixed(f"self_train: teachers[{number}]="):
                    open_teacher(other)
            else:
                sections[f"teachers[{number}]"] = other
        label = self.label_config([self.out])
        self.select_config(1, [self.out])
        for device in (label.device, *(config.device for config in sections.values())):
            check_device(device)
        if self.config.rounds:
            check_sources(self.config.source)
        from ray_fer.methods.registry import check_arguments  # imports torch

        for section, config in sections.items():
            with prefixed(f"self_train: {section}: "):
                check_arguments(config)
                open_start(config.model_copy(update={"init": None}) if config.init == FROM_TEACHER else config)

    def check_exclusions(self) -> None:
        """Reads what no pseudo-label may be of: else a selection would end the loop, after hours of labelling."""
        rounds = self.config.rounds
        if rounds and not storage.exists(self.place(f"round-{rounds}", "round.json")):
            read_exclusions(self.select_config(1, [self.out]).selection)

    def train_teacher(self) -> Artifact:
        """The first teacher, from labelled faces alone; the further ones are trained behind it."""
        teacher = open_artifact(train_backbone(self.teacher_config())["model"])
        log.info("teacher: %s", teacher.uri)
        for other in self.other_configs() if self.config.rounds else []:
            if not isinstance(other, str):
                log.info("teacher: %s", train_backbone(other)["model"])
        return teacher

    def round(self, number: int, teacher: Artifact) -> Summary:
        """One round, or what is still missing of it; what ``round.json`` holds."""
        done = self._done(number)
        if done is not None:
            self._check_same(number, done)
            return done
        log.info("round %d: the teacher is %s", number, teacher.uri)
        theirs = scores_of_halves(teacher)
        selection = self._selected(number, teacher)
        student = open_artifact(train_backbone(self.student_config(number, teacher.uri))["model"])
        ours = scores_of_halves(student)
        better, reason = replaces(ours["choice"], theirs["choice"])
        summary = {
            "round": number,
            "labelled_by": teacher.uri,
            "predictions": selection["considered"],
            "accepted": selection["accepted"],
            "accepted_per_class": selection["counts"],
            "predicted_per_class": selection["predicted"],
            "thresholds": selection["thresholds"],
            "feedback_version": selection["feedback_version"],
            "student": student.uri,
            "teacher_macro_f1": theirs,
            "student_macro_f1": ours,
            "teacher": student.uri if better else teacher.uri,
            "reason": reason,
            "asked": self.config.rounds,
        }
        log.info("round %d: %d of %d pseudo-labels; %s", number, selection["accepted"], selection["considered"], reason)
        storage.write_json(self._round_file(number), summary)
        return summary

    def _round_file(self, number: int) -> str:
        return self.place(f"round-{number}", "round.json")

    def _done(self, number: int) -> Summary | None:
        file = self._round_file(number)
        return dict(read_document(file, Round)) if storage.exists(file) else None

    def _check_same(self, number: int, done: Summary) -> None:
        """Makes sure that a round which is done was asked for with the settings of now.

        Raises:
            UserError: naming what was another.
        """
        config = self.select_config(number, self.labelled_by(done["labelled_by"]))
        found = storage.join(config.out, selection_file.INFO)
        if storage.exists(found):
            self._check_selection(number, config, read_document(found, selection_file.Outcome))
        check_trained(self.student_config(number, done["labelled_by"]))

    def _check_selection(self, number: int, config: SelectPseudoLabelsConfig, found: selection_file.Outcome) -> None:
        label = self.label_config(config.teacher)
        asked = {"selection": config.selection.model_dump(), "label": label.model_dump()}
        others = other_settings(asked, found)
        made_by = found.get("teacher_uris") or []
        if len(made_by) > 1 and made_by != [storage.normalise(uri) for uri in config.teacher]:
            others.append(f"teachers={','.join(made_by[1:])}")
        if others:
            raise UserError(f"out={self.config.out} holds round {number} with {', '.join(others)}; choose another out")

    def _selected(self, number: int, teacher: Artifact) -> Summary:
        config = self.select_config(number, self.labelled_by(teacher.uri))
        found = storage.join(config.out, selection_file.INFO)
        if storage.exists(found):
            info = read_document(found, selection_file.Outcome)
            self._check_selection(number, config, info)
            return dict(info)
        pseudo_label(self.label_config(config.teacher))
        self._feed_back(number, teacher, config)
        selection = select_pseudo_labels(config)
        if not selection["accepted"]:
            storage.delete(config.out)
            raise UserError(f"selection.threshold={config.selection.threshold}: no prediction is confident enough")
        return selection

    def _feed_back(self, number: int, teacher: Artifact, config: SelectPseudoLabelsConfig) -> None:
        """The teacher's validation, the class mix that it sees in the sources, and how much was accepted last.

        Whatever its student learnt under since, it is this teacher that labels now; so the version that it was trained
        under does not matter here, and a teacher that stays is told of again beside the mix of the new pictures.
        Whether the prior helps is what its validation said of the one that it was trained under.
        """
        half = teacher.metrics["val"]["feedback"]
        counts = predicted_counts(config)
        share = None
        if number > 1:
            last = read_document(self._round_file(number - 1), Round)
            share = last["accepted"] / max(last["predictions"], 1)
        cluster.connect()
        actor = get_feedback_actor(self.place("feedback"), teacher.classes, self.config.feedback_parts)
        source = f"round-{number}/teacher-{teacher.id}"
        evidence = {"q_hat": counts.tolist(), "accepted_share": share, "prior_helps": prior_helps(half)}
        update(actor, half["confusion_matrix"], source, **evidence)
