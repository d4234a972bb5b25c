"""Transcripts as labels, in the form in which Whisper writes them."""

from transformers import WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from whisper_mla.evaluation.normalizers import LANGUAGES_WITHOUT_SPACES


class LabelMaker:
    """Turns transcripts into the tokens that a Whisper is to predict.

    These are `<|language|><|task|><|notimestamps|>`, the text with the leading space that Whisper itself writes, and
    the end token. The start token is not among them: the model puts it before the labels to make its decoder input.

    Args:
        tokenizer: of the checkpoint.
        is_multilingual: whether the checkpoint tells languages; an English-only one has no language and task tokens.
        task: "transcribe" or "translate".
        lowercase: write transcripts in lower case (for corpora in capitals).

    Raises:
        ValueError: an unknown task.
    """

    def __init__(
        self,
        tokenizer: WhisperTokenizer,
        is_multilingual: bool = True,
        task: str = "transcribe",
        lowercase: bool = False,
    ):
        if task not in ("transcribe", "translate"):
            raise ValueError(f"task={task!r}: expected 'transcribe' or 'translate'.")
        self.tokenizer, self.is_multilingual, self.task, self.lowercase = tokenizer, is_multilingual, task, lowercase
        self._special = tokenizer.get_added_vocab()

    def language_code(self, language: str | None) -> str:
        """The code of a language given by name or code.

        Raises:
            ValueError: none given to a multilingual model, or one that the tokenizer does not have.
        """
        if not self.is_multilingual:
            if language is not None and TO_LANGUAGE_CODE.get(language.lower(), language.lower()) != "en":
                raise ValueError(f"language={language!r}: this model is English-only.")
            return "en"
        if not language:
            raise ValueError("language: not said of this dataset. Give language or language_column.")
        code = TO_LANGUAGE_CODE.get(language.lower(), language.lower())
        if f"<|{code}|>" not in self._special:
            codes = sorted({*TO_LANGUAGE_CODE.values()} & {token.strip("<|>") for token in self._special})
            raise ValueError(f"language={language!r}: the tokenizer does not have it. It has: {', '.join(codes)}.")
        return code

    def __call__(self, text: str, language: str | None) -> list[int]:
        """Labels of one transcript.

        Args:
            text: not empty.
            language: a name or a code.

        Returns:
            list[int]: token numbers, of any length.

        Raises:
            ValueError: see `language_code`; or a transcript that is missing or empty.
        """
        code = self.language_code(language)
        if text is None or not text.strip():
            raise ValueError("text: missing or empty.")
        text = text.strip().lower() if self.lowercase else text.strip()
        prefix = [f"<|{code}|>", f"<|{self.task}|>"] if self.is_multilingual else []
        numbers = [self._special[token] for token in (*prefix, "<|notimestamps|>")]
        # Whisper begins a transcript with a space, except in languages written without spaces.
        spoken = text if code in LANGUAGES_WITHOUT_SPACES else f" {text}"
        return [*numbers, *self.tokenizer(spoken, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
