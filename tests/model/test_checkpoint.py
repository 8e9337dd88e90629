import json

import pytest
import torch

from model.checkpoint import INDEX, WEIGHTS, Checkpoint
from model.checkpoint_writer import CheckpointWriter
from model.strict_json import read_json


@pytest.fixture
def sharded(tmp_path):
    tensors = {f"layer.{index}": torch.full((5, 5), float(index)) for index in range(6)}
    with CheckpointWriter(tmp_path, shard_bytes=250) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    return tmp_path, tensors


def test_shards_hold_what_was_written(sharded):
    folder, tensors = sharded
    checkpoint = Checkpoint(folder)
    assert set(checkpoint) == set(tensors)
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in tensors.items())
    assert sorted(path.name for path in folder.iterdir()) == [*(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)), INDEX]
    assert json.loads((folder / INDEX).read_text())["metadata"]["total_size"] == 600


def test_one_shard_has_no_index(tmp_path):
    with CheckpointWriter(tmp_path) as writer:
        writer.add("a", torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]


def test_the_head_of_a_tensor_is_its_first_values(tmp_path):
    tensors = {"scalar": torch.tensor(3.0), "row": torch.arange(4.0), "matrix": torch.arange(6.0).reshape(2, 3)}
    with CheckpointWriter(tmp_path) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    heads = {name: Checkpoint(tmp_path).head(name, 2).tolist() for name in tensors}
    assert heads == {"scalar": [3.0], "row": [0.0, 1.0], "matrix": [0.0, 1.0]}


def test_of_some_rows_only_these_are_checked(tmp_path):
    tensor = torch.arange(12.0).reshape(4, 3)
    tensor[2, 1] = torch.nan
    with CheckpointWriter(tmp_path) as writer:
        writer.add("matrix", tensor)
    checkpoint = Checkpoint(tmp_path)
    assert torch.equal(checkpoint.rows("matrix", torch.tensor([3, 0, 3])), tensor[[3, 0, 3]])
    for read in (lambda: checkpoint.rows("matrix", torch.tensor([1, 2])), lambda: checkpoint.tensor("matrix")):
        with pytest.raises(ValueError, match=r"matrix in .* has values that are infinite or not numbers"):
            read()


@pytest.mark.parametrize("name", ["../secret.safetensors", "/secret.safetensors", "weights.bin"])
def test_an_index_may_only_name_shards_beside_it(sharded, name):
    folder, _ = sharded
    (folder / INDEX).write_text(json.dumps({"weight_map": {"layer.0": name}}))
    with pytest.raises(ValueError, match=r"a shard is a \.safetensors file in the same folder"):
        Checkpoint(folder)


def test_a_missing_shard_is_named(sharded):
    folder, _ = sharded
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00003"):
        Checkpoint(folder)


def test_a_truncated_file_is_named(sharded):
    folder, _ = sharded
    path = folder / "model-00001-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"model-00001-of-00003\.safetensors is not a whole safetensors file"):
        Checkpoint(folder)


def test_a_folder_without_safetensors_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="only safetensors checkpoints are read"):
        Checkpoint(tmp_path)


def test_a_writer_goes_on_after_whole_shards(tmp_path):
    """Killed with the second shard begun, and once more while the files get their final names."""
    tensors = {name: torch.full((50,), float(index)) for index, name in enumerate("abcdef")}

    def write(folder):
        folder.mkdir(exist_ok=True)
        with CheckpointWriter(folder, shard_bytes=400, resume=True) as writer:
            for name, tensor in tensors.items():
                if name not in writer.finished:
                    writer.add(name, tensor)
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    expected, broken = write(tmp_path / "unbroken"), tmp_path / "broken"
    broken.mkdir()
    writer = CheckpointWriter(broken, shard_bytes=400)
    for name in "abcde":
        writer.add(name, tensors[name])
    assert CheckpointWriter(broken, resume=True).finished == set("abcd")
    writer.add("f", tensors["f"])
    (broken / "shard-00001.safetensors").rename(broken / "model-00001-of-00003.safetensors")
    assert write(broken) == expected


def test_a_group_lies_in_one_shard(tmp_path):
    with CheckpointWriter(tmp_path, shard_bytes=100) as writer:
        writer.add("a", torch.zeros(20))
        writer.add_group({"b": torch.zeros(20), "c": torch.zeros(3)})
        assert not writer.finished and len(list(tmp_path.iterdir())) == 1
    weight_map = read_json(tmp_path / INDEX)["weight_map"]
    assert weight_map["a"] != weight_map["b"] == weight_map["c"]


def test_tensors_outlive_their_checkpoint(sharded):
    folder, tensors = sharded
    checkpoint = Checkpoint(folder)
    read = {name: checkpoint.tensor(name) for name in checkpoint}
    del checkpoint
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
