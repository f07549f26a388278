"""The embedded critic's parts: tokenizer, processor and a small Idefics3, built from nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Idefics3ForConditionalGeneration, Idefics3Processor

SIDE = 32  # of every picture, in pixels
PATCH, SHUFFLE = 4, 2  # 8 x 8 patches, 2 x 2 of them to one token
TOKENS = (SIDE // PATCH // SHUFFLE) ** 2  # per picture
VOCABULARY = 1024
PAD, START, USER, ASSISTANT, END = "<pad>", "<s>", "<user>", "<assistant>", "<end_of_utterance>"
IMAGE, AROUND, GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"
# A turn is a role and its parts, pictures and texts in the order given; a text may also stand there by itself.
TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{{ '<assistant>' if message['role'] == 'assistant' else '<user>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<end_of_utterance>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def build_processor(texts: Iterable[str]) -> Idefics3Processor:
    """A byte-level BPE tokenizer learned from `texts`, and a processor that leaves 32 x 32 pictures as they are."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Idefics3ImageProcessor, Idefics3Processor, PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    # Words with the blank before them; runs of punctuation as one piece, so that JSON costs few tokens.
    pieces = pre_tokenizers.Split(Regex(r" ?\w+|[^\w\s]+(?: [^\w\s]+)*|\s+"), behavior="isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(False, use_regex=False)])
    inner.decoder = decoders.ByteLevel()
    special = [PAD, START, USER, ASSISTANT, END, IMAGE, AROUND, GLOBAL]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, bos_token=START, eos_token=END, padding_side="left"
    )
    pictures = Idefics3ImageProcessor(
        do_resize=False,
        do_image_splitting=False,
        size={"longest_edge": SIDE},
        max_image_size={"longest_edge": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return Idefics3Processor(pictures, tokenizer, image_seq_len=TOKENS, chat_template=TEMPLATE)


def build_network(tokenizer: Any, seed: int) -> Idefics3ForConditionalGeneration:
    """A vision tower of 3 layers x 96 and a Llama of 3 layers x 128, freshly initialised; float32."""
    import torch
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    config = Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        scale_factor=SHUFFLE,
        tie_word_embeddings=True,
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 288,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 512,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "tie_word_embeddings": True,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = Idefics3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def layout(prompt: str) -> str:
    """The text before the answer as the chat template and the processor spell it, three pictures first."""
    picture = f"{AROUND}{GLOBAL}{IMAGE * TOKENS}{AROUND}"
    return f"{START}{USER}{picture * 3}{prompt}{ASSISTANT}"


def load(folder: Path) -> tuple[Any, Any]:
    """Model (eval mode, float32) and processor of a folder, without the network."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(folder, local_files_only=True)
