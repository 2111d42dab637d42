"""Stop in the middle of an epoch and continue with the next batch.

`state_dict` counts the batches that the loop has received, not the prefetched ones, so no sample
is skipped and none is seen twice.
"""

import json
import tempfile

import kdcache as kd


def main() -> None:
    """Read five batches, store the position as JSON, and read the rest with a new loader."""
    with tempfile.TemporaryDirectory() as workspace:
        data = kd.pack("digits", workspace=workspace)
        kd.train_teacher(workspace, model="resnet8", steps=4)
        store = kd.build_logits(workspace, teacher="resnet8", views=1)

        seen: list[int] = []
        with kd.DistillLoader(data.train, store, batch_size=100) as loader:
            loader.set_epoch(0)
            for number, batch in enumerate(loader, start=1):
                seen += batch.sample_ids.tolist()
                if number == 5:
                    state = json.dumps(loader.state_dict())
                    break

        with kd.DistillLoader(data.train, store, batch_size=100) as loader:
            loader.load_state_dict(json.loads(state))
            for batch in loader:
                seen += batch.sample_ids.tolist()

        print(f"{len(seen)} samples, {len(set(seen))} different, of {len(data.train)}")
        assert sorted(seen) == data.train.sample_ids.tolist()


if __name__ == "__main__":
    main()
