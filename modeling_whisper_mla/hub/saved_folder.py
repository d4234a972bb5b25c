"""What a saved Whisper-MLA model is: its weights, its code, its conversion record and its model card."""

import importlib
import os
from pathlib import Path

from huggingface_hub import HfApi

from .conversion_record import RECORD_NAME, read_conversion_record, write_conversion_record
from .remote_code import AUTO_MAP, remove_remote_code, write_remote_code


class SavedFolderMixin:
    """Makes `save_pretrained` and `push_to_hub` write folders that anyone can load; `from_pretrained` keeps the record.

    Attributes:
        conversion_record: content of `conversion.json`; None for a model that was not converted.
    """

    conversion_record: dict | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As `PreTrainedModel.from_pretrained`; also reads `conversion.json` into `conversion_record`."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if pretrained_model_name_or_path is not None:
            # The commit that the weights came from, which needs no further question to the Hub if it is cached.
            revision = getattr(model.config, "_commit_hash", None) or kwargs.pop("revision", None)
            kwargs.pop("revision", None)
            model.conversion_record = read_conversion_record(pretrained_model_name_or_path, revision, **kwargs)
        return loaded

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        include_code: bool = True,
        **kwargs,
    ):
        """As `PreTrainedModel.save_pretrained`, and beside the weights: flat copies of the model's source files, for
        `trust_remote_code=True`; `conversion.json` with checksums, and a model card, if the model was converted.

        Args:
            include_code: False leaves the source files out; loading then needs the package.
        """
        if getattr(self, "_hf_peft_config_loaded", False):  # only the adapters are saved
            return super().save_pretrained(save_directory, is_main_process, state_dict, push_to_hub, **kwargs)
        timestamps = self._get_files_timestamps(save_directory) if os.path.isdir(save_directory) else {}
        auto_map = self.config.__dict__.pop("auto_map", None)
        if include_code:
            self.config.auto_map = dict(AUTO_MAP)
        try:
            super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
        finally:
            self.config.__dict__.pop("auto_map", None)
            if auto_map is not None:
                self.config.auto_map = auto_map
        if not is_main_process or not os.path.isdir(save_directory):
            return
        if include_code:
            write_remote_code(save_directory)
        else:
            remove_remote_code(save_directory)
        if self.conversion_record is not None:
            write_conversion_record(save_directory, self.conversion_record)
            if not Path(save_directory, "README.md").exists():
                write_model_card(save_directory)
        if push_to_hub:
            self._push_saved(save_directory, timestamps, **kwargs)

    def _push_saved(self, folder, timestamps, repo_id=None, private=None, token=None, **kwargs):
        repo_id = repo_id or Path(folder).name
        repo_id = HfApi().create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        upload = ("commit_message", "commit_description", "create_pr", "revision")
        arguments = {name: kwargs[name] for name in upload if name in kwargs}
        self._upload_modified_files(folder, repo_id, timestamps, token=token, **arguments)

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        # push_to_hub has just written the repository's card here, or Transformers' general one if it has none.
        is_converted = Path(working_dir, RECORD_NAME).exists()
        if is_converted and not HfApi().file_exists(repo_id, "README.md", token=kwargs.get("token")):
            write_model_card(working_dir)
        try:
            hub_folder = importlib.import_module("whisper_mla.hub.push")
        except ModuleNotFoundError:
            return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)
        # Transformers would leave the weights of an earlier push beside new ones in another number of files, and load
        # the old ones.
        names = ("token", "create_pr", "revision", "commit_message")
        arguments = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        return hub_folder.commit_files(hub_folder.visible_files(working_dir), repo_id, **arguments)


def write_model_card(folder: str | os.PathLike) -> None:
    """Write README.md from what the folder holds; without the package, which has the template, nothing is written."""
    try:
        module = importlib.import_module("whisper_mla.hub.model_card")
    except ModuleNotFoundError:
        return
    module.write_model_card(folder)
