"""nnU-Net's own trainer, for a number of minutes of one core."""

import os
import time
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class OneCoreTrainer(nnUNetTrainer):
    """The trainer as published, but for the budget: CORE_MINUTES (environment) of processor time, over which
    the learning rate falls; 12 patches a batch; a forward pass in bf16, as ours.
    """

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device,
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        torch.set_num_threads(1)
        self.num_iterations_per_epoch = 25
        self.num_val_iterations_per_epoch = 1

    def _set_batch_size_and_oversample(self) -> None:
        super()._set_batch_size_and_oversample()
        self.batch_size = 12

    def initialize(self) -> None:
        """Build the network as published, with a forward pass in bf16 and outputs in float32."""
        super().initialize()
        forward = self.network.forward

        def bf16_forward(images: torch.Tensor) -> list[torch.Tensor] | torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = forward(images)
            return [one.float() for one in logits] if isinstance(logits, list) else logits.float()

        self.network.forward = bf16_forward

    def run_training(self) -> None:
        """Train until the processor time is spent."""
        self.on_train_start()
        begin, budget_s = time.process_time(), 60 * float(os.environ["CORE_MINUTES"])
        while (spent_s := time.process_time() - begin) < budget_s:
            self.on_epoch_start()
            self.on_train_epoch_start()
            self.lr_scheduler.step(self.num_epochs * spent_s / budget_s)
            steps = range(self.num_iterations_per_epoch)
            self.on_train_epoch_end([self.train_step(next(self.dataloader_train)) for _ in steps])
            with torch.no_grad():
                self.on_validation_epoch_start()
                self.on_validation_epoch_end([self.validation_step(next(self.dataloader_val))])
            self.on_epoch_end()
            self.print_to_log_file(f"processor time: {time.process_time() - begin:.0f} s")
        self.on_train_end()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Nothing: the held-out cases are predicted and scored afterwards."""
