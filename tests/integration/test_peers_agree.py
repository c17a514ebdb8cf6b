"""At (0, 1) and (1, 1) our objective is the cross-entropy that everybody computes: TRL's trainer, measured."""

import pytest
import torch
from tiny import loss_of_first_step, run_config, tiny_model, tiny_split

from train.batches import collate
from train.spans import Role

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("prompt_weight", "response_weight", "masked"),
    [(0.0, 1.0, (Role.NONE, Role.PROMPT)), (1.0, 1.0, (Role.NONE,))],
)
@pytest.mark.filterwarnings("default")  # TRL's and its libraries' own
def test_trl_computes_the_same_loss(tmp_path, prompt_weight, response_weight, masked):
    trl = pytest.importorskip("trl")
    import datasets

    from train.compose import compose_run
    from train.tokenizer import load_tokenizer

    config = compose_run(["objective.prompt_weight=0", "objective.response_weight=1", "seed=0"])
    batch = collate(tiny_split(6), list(range(6)), torch.device("cpu"))
    labels_BT = batch.ids_BT.clone()
    for role in masked:
        labels_BT[batch.roles_BT == role] = -100
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False
    )
    trainer = trl.SFTTrainer(
        model=tiny_model(),
        args=arguments,
        train_dataset=datasets.Dataset.from_dict({"input_ids": [[1, 5, 6, 2]]}),
        processing_class=load_tokenizer(config.model),
    )
    mask_BT = torch.ones_like(batch.ids_BT)
    inputs = {"input_ids": batch.ids_BT, "labels": labels_BT, "attention_mask": mask_BT}
    theirs = trainer.compute_loss(trainer.model.eval(), inputs).detach().item()
    ours = loss_of_first_step(run_config(prompt_weight, response_weight), tiny_split(6), tmp_path / "ours")
    assert ours == pytest.approx(theirs, rel=1e-6)
