"""The whole road: a teacher's knowledge goes through clusters into a student, and all are measured alike."""

from __future__ import annotations

from typing import Any, Protocol

from flows.recipe import Evaluation, Recipe
from tasks.assign_labels import assign_labels
from tasks.cluster_features import cluster_features
from tasks.extract_features import extract_features
from tasks.finetune_encoder import finetune_encoder
from tasks.index_dataset import index_dataset
from tasks.probe_features import probe_features
from tasks.train_pretext import train_pretext
from tasks.train_student import train_student
from tasks.write_report import WriteReportConfig, write_report

# The step whose encoder is what a pipeline is for, and the one that says what it came to.
STUDENT, REPORT = "train_student", "write_report"


class Run(Protocol):
    """Makes, or only looks up, one step. What it gives may be handed to other steps, and to nothing else."""

    def __call__(self, step: str, stage: Any, config: Any, /, **inputs: Any) -> Any: ...


def knowledge_transfer(recipe: Recipe, run: Run) -> Any:
    """Run every step of a recipe; gives the report."""
    pretext_images = run("index_pretext", index_dataset, recipe.pretext_data)
    cluster_images = run("index_cluster", index_dataset, recipe.cluster_data)
    student_images = run("index_student", index_dataset, recipe.student_data)

    teacher = run("train_pretext", train_pretext, recipe.train_pretext, images=pretext_images)
    features = run("extract_cluster", extract_features, recipe.extract_cluster, encoder=teacher, images=cluster_images)
    centroids = run("cluster_features", cluster_features, recipe.cluster_features, features=features)
    targets = run("extract_student", extract_features, recipe.extract_cluster, encoder=teacher, images=student_images)
    labels = run("assign_labels", assign_labels, recipe.assign_labels, features=targets, centroids=centroids)
    student = run(STUDENT, train_student, recipe.train_student, images=student_images, labels=labels)

    direct = run("train_direct", train_pretext, recipe.train_direct, images=student_images)
    random = run("init_random", train_pretext, recipe.init_random, images=student_images)

    encoders = {"teacher": teacher, "student": student, "direct": direct, "random": random}
    results: dict[str, Any] = {}
    for name, evaluation in recipe.evaluations.items():
        results |= _evaluate(name, evaluation, encoders, run)
    return run(
        REPORT,
        write_report,
        WriteReportConfig(title=recipe.name),
        centroids=centroids,
        labels=labels,
        student_images=student_images,
        **results,
    )


def _evaluate(name: str, evaluation: Evaluation, encoders: dict[str, Any], run: Run) -> dict[str, Any]:
    """Measure every encoder on one downstream task: `probe_TASK_ENCODER` and `finetune_TASK_ENCODER`."""
    train = run(f"index_{name}_train", index_dataset, evaluation.train_data)
    test = run(f"index_{name}_test", index_dataset, evaluation.test_data)
    results: dict[str, Any] = {}
    for who, encoder in encoders.items():
        images = {"train_images": train, "test_images": test}
        features = {
            part: run(f"extract_{name}_{who}_{part}", extract_features, evaluation.extract, encoder=encoder, images=own)
            for part, own in (("train", train), ("test", test))
        }
        step = f"probe_{name}_{who}"
        results[step] = run(step, probe_features, evaluation.probe, **features, **images)
        if evaluation.finetune is not None:
            step = f"finetune_{name}_{who}"
            results[step] = run(step, finetune_encoder, evaluation.finetune, encoder=encoder, **images)
    return results
