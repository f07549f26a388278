"""Random-weight vision-language checkpoints for tests and timing: real architectures, no knowledge, no download."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

NAME = "tiny random-weight Qwen2.5-VL"
WORDS = 300  # entries of the tokenizers
VOCABULARY = 320  # width of the models' logits, wider than the tokenizer as in real checkpoints
_TEXT = ['{"verdict": "spurious"}', '{"verdict": "relevant", "why": "the patch"}', "system user assistant", "Which?"]

_QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_IDEFICS_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{% if c.type == 'image' %}<image>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


TINY: dict[str, dict[str, Any]] = {
    "text": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    },
    "vision": {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    },
}
SEVEN_BILLION: dict[str, dict[str, Any]] = {  # the shape of Qwen2.5-VL-7B-Instruct, from its published config
    "text": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "window_size": 112,
    },
}


def save_qwen(
    folder: Path,
    seed: int = 0,
    vocabulary: int = VOCABULARY,
    *,
    shape: dict[str, dict[str, Any]] = TINY,
    side: int = 112,
    words: int = WORDS,
    text: Sequence[str] = _TEXT,
    device: str = "cpu",
) -> Path:
    """Write a random-weight Qwen2.5-VL into `folder`; by default a tiny one (about 0.1 M parameters).

    vocabulary: width of the logits of the tiny shape. side: pictures larger than side x side pixels are shrunk; an
    image token stands for 28 x 28. words, text: size of the tokenizer and what it is trained on. device: where the
    weights are drawn; on a GPU they are bfloat16.
    """
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    names = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *names)
    tokenizer = _tokenizer(specials, eos="<|im_end|>", pad="<|endoftext|>", words=words, text=text)
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(names))
    own = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if shape is TINY:
        own["vocab_size"] = vocabulary
    config = Qwen2_5_VLConfig(
        text_config={**shape["text"], **own},
        vision_config=shape["vision"],
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=False,
    )
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=side * side),
        tokenizer,
        Qwen2VLVideoProcessor(),
        chat_template=_QWEN_TEMPLATE,
    )
    return _save(Qwen2_5_VLForConditionalGeneration, config, processor, folder, seed, device)


def save_idefics(folder: Path, seed: int = 0) -> Path:
    """Write a tiny random-weight Idefics3 (32-pixel images as 16 tokens) into `folder`."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor

    specials = ("<|endoftext|>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    tokenizer = _tokenizer(specials, eos="<end_of_utterance>", pad="<|endoftext|>")
    text = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 4,
    }
    config = Idefics3Config(
        text_config=text,
        vision_config=vision,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    pictures = Idefics3ImageProcessor(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    processor = Idefics3Processor(pictures, tokenizer, image_seq_len=16, chat_template=_IDEFICS_TEMPLATE)
    return _save(Idefics3ForConditionalGeneration, config, processor, folder, seed)


def let_end_anywhere(folder: Path) -> Path:
    """Make every ninth token end a text: random weights hardly ever end one."""
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": list(range(8, WORDS, 9))}))
    return folder


def _tokenizer(
    specials: tuple[str, ...], eos: str, pad: str, words: int = WORDS, text: Sequence[str] = _TEXT
) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every byte is a token, so every text can be written and read."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=words, special_tokens=list(specials), initial_alphabet=alphabet)
    raw.train_from_iterator(list(text) * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=eos, pad_token=pad, additional_special_tokens=list(specials)
    )


def _save(kind: Any, config: Any, processor: Any, folder: Path, seed: int, device: str = "cpu") -> Path:
    """Random weights; those of a tiny model large enough for one image to change the answer to the next."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = kind._from_config(config, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, 0.2 if device == "cpu" else 0.02)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
