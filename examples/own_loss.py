"""A distillation loss of your own, used by name: `--loss own_loss:cosine`.

A loss is a function `loss(student, teacher, labels, context)` of logits (B, C), or a class if it
has parameters to train. It returns one number or one per sample.
"""

import tempfile

from torch import Tensor
from torch.nn import functional

import kdcache as kd


def cosine(student: Tensor, teacher: Tensor, _labels: Tensor, _context: kd.LossContext) -> Tensor:
    """Return 1 - cosine similarity of the centred logits, one number per sample."""
    student = student - student.mean(dim=1, keepdim=True)
    teacher = teacher - teacher.mean(dim=1, keepdim=True)
    return 1 - functional.cosine_similarity(student, teacher, dim=1)


def main() -> None:
    """Train a student on the digits with it, for two epochs."""
    with tempfile.TemporaryDirectory() as workspace:
        kd.pack("digits", workspace=workspace)
        kd.train_teacher(workspace, model="resnet8", epochs=2)
        kd.build_logits(workspace, teacher="resnet8", views=2)
        result = kd.train(workspace, subset="full", loss="own_loss:cosine", epochs=2)
        print(f"top-1 {result.top1:.1f} %, {result.teacher_forwards} teacher forwards")


if __name__ == "__main__":
    main()
