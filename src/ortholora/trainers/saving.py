"""`SavingTrainer`: a Trainer of an `AdaptedModel` whose checkpoints are whole, and which goes on from any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import EarlyStoppingCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from ortholora.engine.distributed import barrier
from ortholora.errors import UserError
from ortholora.files import publish_folder
from ortholora.models.adapted import AdaptedModel
from ortholora.models.card import ModelCard
from ortholora.models.loading import load_weights
from ortholora.models.saving import Weights, save_model
from ortholora.trainers import checkpoints
from ortholora.trainers.mixin import ResolveMixin
from ortholora.trainers.resumable import check_resumable
from ortholora.trainers.resume import STATE_FILE
from ortholora.trainers.sharded import gather_while_answering, uses_fsdp2
from ortholora.trainers.whole_checkpoints import WholeOptimizer
from ortholora.trainers.whole_model import load_sharded_weights, whole_weights


class SavingTrainer(ResolveMixin, WholeOptimizer):
    """Saves the adapter and what lies beside it, and resumes also where nothing is left to train."""

    card: ModelCard

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, or go on; from a checkpoint of the last step nothing is trained any more.

        (The Trainer itself would take one step more there, unless an epoch ends with it.)
        """
        if isinstance(resume_from_checkpoint, str):
            check_resumable(Path(resume_from_checkpoint))
        if isinstance(resume_from_checkpoint, str) and self._is_finished(Path(resume_from_checkpoint)):
            self._load_from_checkpoint(resume_from_checkpoint)
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
                self._load_best_model()
            return TrainOutput(self.state.global_step, 0.0, {})
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _is_finished(self, checkpoint: Path) -> bool:
        path = checkpoint / TRAINER_STATE_NAME
        if not path.is_file():
            return False
        state = TrainerState.load_from_json(str(path))
        if 0 < self.args.max_steps <= state.global_step or self._is_over(checkpoint):
            self.state = state
            self.state.max_steps = self.args.max_steps
            return True
        return False

    def _is_over(self, checkpoint: Path) -> bool:
        """Whether nothing is left to train before the last step."""
        return False

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter and what lies beside it; under FSDP2 all processes take part, and one writes."""
        if not self.is_sharded:
            super().save_model(output_dir, _internal_call)
            return
        weights = self.gathered()
        if self.args.should_save:
            save_model(Path(output_dir) if output_dir else self._folder(), self._bare_model(), self.card, weights)

    def gathered(self) -> Weights | None:
        """What is trained, whole, for whoever saves on one rank; None where the model has it so. A collective."""
        return whole_weights(self._bare_model()) if self.is_sharded else None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        save_model(Path(output_dir) if output_dir else self._folder(), self._bare_model(), self.card)

    def ready_to_answer(self) -> AdaptedModel:
        """The model, so that it can be asked; a collective where FSDP2 is to hold it and does not yet."""
        if uses_fsdp2(self.accelerator):
            self.shard()
            gather_while_answering(self._bare_model())
        return self._bare_model()

    def _load_weights(self, folder: Path) -> None:
        (load_sharded_weights if self.is_sharded else load_weights)(folder, self._bare_model())

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Every rank writes its part into one staging folder; one of them moves it into its place."""
        folder = self._folder()
        name = f"checkpoint-{self.state.global_step}"
        main = self.args.should_save
        if not main:
            barrier()  # until the folder is there
        with checkpoints.staging(folder, f"The checkpoint of step {self.state.global_step}", owner=main) as stage:
            if main:
                barrier()
            self._staged_output_dir = str(stage)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                del self._staged_output_dir
            barrier()  # until every rank has written
            if main:
                self._correct_best(folder, name)
                self.state.save_to_json(str(stage / name / "trainer_state.json"))
                publish_folder(stage / name, folder / name)
        barrier()  # until it is in its place
        if main:
            checkpoints.rotate(folder, self.args.save_total_limit, self.state.best_model_checkpoint)
        else:
            self._correct_best(folder, name)

    def _get_output_dir(self, trial: Any) -> str:
        return getattr(self, "_staged_output_dir", None) or super()._get_output_dir(trial)

    def _correct_best(self, folder: Path, name: str) -> None:
        """The Trainer has just looked for the best checkpoint in the staging folder."""
        best = f"checkpoint-{self.state.best_global_step}" if self.state.best_global_step else None
        if best is not None and (best == name or (folder / best).is_dir()):
            self.state.best_model_checkpoint = str(folder / best)

    def resume_state(self) -> dict[str, Any]:
        """The mixin's, and how patient early stopping still is."""
        patience = [callback.early_stopping_patience_counter for callback in self._early_stopping()]
        return super().resume_state() | {"patience": patience}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Restore `resume_state()`."""
        super().load_resume_state(state)
        # The Trainer restores callbacks only on request, and then its own control flow with them.
        for callback, counter in zip(self._early_stopping(), state["patience"], strict=True):
            callback.early_stopping_patience_counter = counter

    def _early_stopping(self) -> list[EarlyStoppingCallback]:
        return [c for c in self.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        self._load_weights(folder)
        if not (folder / STATE_FILE).is_file():
            raise UserError(
                f"The checkpoint {folder} cannot be resumed",
                expected=f"a complete checkpoint with {STATE_FILE}",
                found="none (was it saved with `save_only_model`?)",
                todo=f"delete {folder} to go on from the checkpoint before it",
            )
        self.restore(folder)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._load_weights(Path(self.state.best_model_checkpoint))

    def _folder(self) -> Path:
        return Path(str(self.args.output_dir))

    def _bare_model(self) -> AdaptedModel:
        model = self.accelerator.unwrap_model(self.model)
        assert isinstance(model, AdaptedModel)
        return model
