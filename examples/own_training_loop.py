"""Distil a student in a training loop of your own, from images to accuracy.

The teacher runs once, in `build_logits`. The loop below reads its logits from the store.
"""

import tempfile

import torch
from torch.nn import functional

import kdcache as kd

EPOCHS = 3
TEMPERATURE = 4.0


def main() -> None:
    """Pack the digits, train a teacher, cache its logits, select half of the data, distil."""
    with tempfile.TemporaryDirectory() as workspace:
        data = kd.pack("digits", workspace=workspace)
        kd.train_teacher(workspace, model="resnet20", epochs=2)
        store = kd.build_logits(workspace, teacher="resnet20", views=EPOCHS)
        subset = kd.select(workspace, method="medium", keep=0.5)
        print(f"{len(subset)} of {len(data.train)} samples")

        student = kd.make_model("resnet8", num_classes=store.manifest.classes, image_size=8)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, nesterov=True)
        with kd.DistillLoader(data.train, store, subset, batch_size=64) as loader:
            for epoch in range(EPOCHS):
                loader.set_epoch(epoch)
                for batch in loader:
                    loss = functional.kl_div(
                        functional.log_softmax(student(batch.normalized()) / TEMPERATURE, dim=1),
                        functional.log_softmax(batch.teacher_logits() / TEMPERATURE, dim=1),
                        reduction="batchmean",
                        log_target=True,
                    )
                    optimizer.zero_grad()
                    (TEMPERATURE**2 * loss).backward()
                    optimizer.step()
                print(f"epoch {epoch}: loss of the last batch {loss.item():.4f}")


if __name__ == "__main__":
    main()
