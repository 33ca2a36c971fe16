"""The parts of the embedded pipeline, and the encoding of prompts exactly as the pipeline does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from training.latents import CHANNELS
from training.positions import position_table
from training.tokenizers import CLIP_ROWS, make_clip, make_t5

HEADS, HEAD_WIDTH, LAYERS = 4, 64, 8
CLIP_WIDTH, T5_WIDTH = 128, 256
DEFAULT_SIZE, LARGEST_SIZE = 256, 512
PIXELS_PER_LATENT, LATENTS_PER_TOKEN = 4, 2


def make_transformer() -> SD3Transformer2DModel:
    """The diffusion transformer; modulation and output start at zero."""
    transformer = SD3Transformer2DModel(
        sample_size=DEFAULT_SIZE // PIXELS_PER_LATENT,
        patch_size=LATENTS_PER_TOKEN,
        in_channels=len(CHANNELS),
        out_channels=len(CHANNELS),
        num_layers=LAYERS,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=HEADS * HEAD_WIDTH,
        pooled_projection_dim=2 * CLIP_WIDTH,
        pos_embed_max_size=LARGEST_SIZE // (PIXELS_PER_LATENT * LATENTS_PER_TOKEN),
        qk_norm="rms_norm",
    )
    transformer.pos_embed.pos_embed.copy_(
        position_table(transformer.config.pos_embed_max_size, HEADS * HEAD_WIDTH)
    )
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    zeroed = [transformer.proj_out, transformer.norm_out.linear]
    for block in transformer.transformer_blocks:
        zeroed += [block.norm1.linear, block.norm1_context.linear]
    for linear in zeroed:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return transformer


def make_clip_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """One of the two small CLIP text encoders."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=CLIP_WIDTH,
            intermediate_size=4 * CLIP_WIDTH,
            projection_dim=CLIP_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CLIP_ROWS,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_t5_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """The small T5 encoder."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=T5_WIDTH,
            d_kv=64,
            d_ff=2 * T5_WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def make_autoencoder() -> AutoencoderKL:
    """The autoencoder: four pixels to a latent, no attention, no quantisation layers."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=len(CHANNELS),
        block_out_channels=(24, 48, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=DEFAULT_SIZE,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


@dataclass
class Texts:
    """The three text encoders with their tokenizers."""

    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    tokenizer_3: T5Tokenizer
    text_encoder: CLIPTextModelWithProjection
    text_encoder_2: CLIPTextModelWithProjection
    text_encoder_3: T5EncoderModel

    @classmethod
    def make(cls) -> Texts:
        """Untrained encoders."""
        clip, clip_2, t5 = make_clip(), make_clip(), make_t5()
        encoders = (make_clip_encoder(clip), make_clip_encoder(clip_2), make_t5_encoder(t5))
        return cls(clip, clip_2, t5, *encoders)

    @property
    def encoders(self) -> nn.ModuleDict:
        """The trained parts, by their names in the pipeline."""
        names = ("text_encoder", "text_encoder_2", "text_encoder_3")
        return nn.ModuleDict({name: getattr(self, name) for name in names})

    def encode(self, prompts: list[str], t5_rows: int) -> tuple[Tensor, Tensor]:
        """Rows [B, 16 + t5_rows, 256] and pooled rows [B, 256], as the pipeline makes them."""
        hidden, pooled = [], []
        for tokenizer, encoder in (
            (self.tokenizer, self.text_encoder),
            (self.tokenizer_2, self.text_encoder_2),
        ):
            ids = tokenizer(
                prompts,
                padding="max_length",
                max_length=CLIP_ROWS,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            output = encoder(ids, output_hidden_states=True)
            pooled.append(output[0])
            hidden.append(output.hidden_states[-2])
        ids = self.tokenizer_3(
            prompts,
            padding="max_length",
            max_length=t5_rows,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        ).input_ids
        rows = self.text_encoder_3(ids)[0]
        clip = torch.cat(hidden, dim=-1)
        clip = nn.functional.pad(clip, (0, rows.shape[-1] - clip.shape[-1]))
        return torch.cat([clip, rows], dim=-2), torch.cat(pooled, dim=-1)


def make_pipeline(
    transformer: SD3Transformer2DModel, texts: Texts, autoencoder: AutoencoderKL, shift: float
) -> StableDiffusion3Pipeline:
    """The stock pipeline of these parts."""
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=autoencoder,
        text_encoder=texts.text_encoder,
        tokenizer=texts.tokenizer,
        text_encoder_2=texts.text_encoder_2,
        tokenizer_2=texts.tokenizer_2,
        text_encoder_3=texts.text_encoder_3,
        tokenizer_3=texts.tokenizer_3,
    )


def load_parts(folder: Path) -> tuple[SD3Transformer2DModel, Texts, AutoencoderKL]:
    """Transformer, texts and autoencoder of an exported pipeline, in fp32."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    texts = Texts(
        pipeline.tokenizer,
        pipeline.tokenizer_2,
        pipeline.tokenizer_3,
        pipeline.text_encoder,
        pipeline.text_encoder_2,
        pipeline.text_encoder_3,
    )
    return pipeline.transformer, texts, pipeline.vae
