"""A user's script, which `tests/test_typing.py` gives to mypy --strict; nothing runs it."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import numpy as np

import kdcache as kd
from kdcache.registry import Registry


def paths_may_be_paths_or_texts(folder: Path) -> None:
    for path in (folder, str(folder)):
        kd.pack(path, workspace=path, val_source=path)
        kd.pack(workspace=path, subset=path)
        kd.train_teacher(path, milestones=[0.5], schedule="step")
        kd.build_logits(path, teacher=path, subset=path, store=path)
        kd.build_logits(path, teacher=[path], arch=["resnet8"])
        kd.build_logits(path, teacher=["resnet8", folder])
        kd.score("el2n", workspace=path, teacher=path, store=path)
        kd.select(path, scores=path, export=path, out=path, compare=path, average_with=[path])
        kd.train(path, subset=path, store=path, out=path, live_teacher=path)
        kd.evaluate(path, path)
        kd.verify(path, store=path, teacher=path)
        kd.merge([path], out=path)
        kd.merge(path, out=path)
        kd.export(path, workspace=path, store=path)
        kd.show(path)
        kd.run(path, workspace=path, source=path)
        kd.study(path, workspace=path, results=path, plot=path, source=["a=b"])
        with kd.DistillLoader(path, path, path) as loader:
            assert_type(len(loader), int)


def results_are_typed(folder: Path) -> list[object]:
    data = kd.pack("digits", workspace=folder)
    store = kd.build_logits(folder, teacher="resnet8")
    subset = kd.select(folder, method="medium", keep=0.7)
    student = kd.make_model("resnet8", num_classes=store.manifest.classes, image_size=8)
    with kd.DistillLoader(data.train, store, subset, batch_size=128, views="clean") as loader:
        for batch in loader:
            kd.distillation_loss(
                student(batch.normalized()),
                batch.teacher_logits(),
                batch.labels,
                temperature=4.0,
                alpha=0.9,
            )
        loader.load_state_dict(loader.state_dict())
    result = kd.train(folder, model="resnet8", epochs=2, seeds=3)
    evaluated = kd.evaluate(folder, result.path)
    accuracy: float = evaluated.top1
    return [
        accuracy,
        np.mean([run.images_per_second for run in result.runs]),
        assert_type(kd.scores.registry.SCORES, Registry),
        assert_type(kd.losses.registry.LOSSES, Registry),
        assert_type(kd.codecs.registry.CODECS, Registry),
        assert_type(kd.models.registry.list_models(), list[str]),
        kd.methods.METHODS,
    ]


def wrong_arguments_are_errors(folder: Path) -> None:
    kd.train(folder, epochs="3")  # type: ignore[arg-type]
    kd.train(folder, epoch=3)  # type: ignore[call-arg]
    kd.select(folder, balance="all")  # type: ignore[arg-type]
    kd.show(3)  # type: ignore[arg-type]
    kd.DistillLoader(folder, None, order="shuffled")  # type: ignore[arg-type]
