"""Two processes under torchrun (gloo, CPU) learn what one learns, replicated and sharded."""

import json
import subprocess
import sys

import pytest
import torch

from tests.conftest import random_features
from tests.training import shard_worker, train_worker
from tests.training.conftest import ROOT

pytestmark = pytest.mark.processes


def two_processes(module: str, argument: str) -> None:
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m", f"tests.training.{module}"]
    done = subprocess.run([sys.executable, *command, argument], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_replicated_and_accumulating(tmp_path):
    alone = {"spec_augment": False, "save_strategy": "no", "optim": "sgd", "learning_rate": 0.1, "max_steps": 6}
    train_worker.main(str(tmp_path / "one"), str(tmp_path / "run"), changes=alone)
    together = {**alone, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "ddp_backend": "gloo"}
    job = {"out": str(tmp_path / "two"), "output_dir": str(tmp_path / "run"), "changes": together}
    two_processes("train_worker", json.dumps(job))
    one, two = torch.load(tmp_path / "one"), torch.load(tmp_path / "two")
    assert "DistributedDataParallel" in two["wrapped"]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["weights"].keys() == one["weights"].keys()
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], tensor, rtol=1e-3, atol=1e-6, msg=name)


def test_sharded(tmp_path):
    model = shard_worker.make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    shard_worker.train(model, random_features(model), shard_worker.LABELS)
    two_processes("shard_worker", str(tmp_path / "weights"))
    weights = torch.load(tmp_path / "weights")
    assert {name for name, tensor in weights.items() if not torch.equal(tensor, before[name])} == names
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-6, msg=name)
