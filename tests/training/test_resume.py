"""Killed and started again: the same losses and the same weights, bit by bit."""

import json
import signal
import subprocess
import sys

import pytest
import torch

from tests.training.conftest import ROOT, losses
from tests.training.train_worker import make_trainer
from whisper_mla.training.checkpoints import last_complete_checkpoint


@pytest.mark.kills
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    whole = make_trainer(str(tmp_path / "whole"), save_strategy="no")
    whole.train()

    # Step 5 lies between the checkpoints of steps 3 and 6.
    job = {"out": str(tmp_path / "never"), "output_dir": str(tmp_path / "killed"), "kill_at": 5}
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.train_worker", json.dumps(job)], cwd=ROOT, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (tmp_path / "never").exists()
    checkpoint = last_complete_checkpoint(job["output_dir"])
    assert checkpoint.endswith("checkpoint-3")

    resumed = make_trainer(job["output_dir"])
    resumed.train(resume_from_checkpoint=checkpoint)
    assert losses(resumed) == losses(whole)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    for step, state in ((2, '{"global_step": 2}'), (10, '{"global_step": 10}'), (12, '{"global_st'), (14, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state:
            (folder / "trainer_state.json").write_text(state)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
