"""Small tokenizers of the two common kinds: byte-level BPE, and SentencePiece with byte tokens."""

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from superdraft.decoding.text.tokenizer import Tokenizer


def byte_level(pieces, special="<|endoftext|>", normalizer=None):
    """A byte-level BPE of all bytes, `pieces` and all their prefixes; its only special token is `special`, id 0."""
    to_alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens = [*([special] if special else []), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = []
    for piece in pieces:
        ((chars, _),) = to_alphabet.pre_tokenize_str(piece)
        for end in range(2, len(chars) + 1):
            if chars[:end] not in tokens:
                tokens.append(chars[:end])
                merges.append((chars[: end - 1], chars[end - 1]))
    backend = Backend(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = to_alphabet
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=special))


def sentencepiece_like():
    """Like Llama 2: a beginning-of-text token, a space before the text, and byte tokens for unknown characters."""
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    tokens += ["▁", "a", "b", "o", "r", "w", "▁a", "▁ab", "▁w", "or", "▁wor"]
    merges = [("▁", "a"), ("▁a", "b"), ("▁", "w"), ("o", "r"), ("▁w", "or")]
    backend = Backend(models.BPE({t: i for i, t in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return Tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    )


def merged_byte_level(merges: list[tuple[str, str]], split: bool) -> Tokenizer:
    """A byte-level BPE of all bytes and these merges. With `split` it first splits a text into words, like GPT-2."""
    to_alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def chars(text: str) -> str:
        return "".join(piece for piece, _ in alphabet.pre_tokenize_str(text))

    pairs = [(chars(left), chars(right)) for left, right in merges]
    tokens = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += dict.fromkeys(left + right for left, right in pairs)
    backend = Backend(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    backend.pre_tokenizer = to_alphabet
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>"))
