"""How architectures call the projections of their attention and feed-forward layers.

A row for each role, a regular expression for the end of a module path in each line. Architectures mix the names of
others freely, so a role is looked for under all of them; a set asks only for the roles it needs.
"""

from __future__ import annotations

_FUSED = (
    r"attn\.c_attn",  # GPT-2, GPT-BigCode: Conv1D layers with query, key and value side by side
    r"attn\.Wqkv",  # ModernBERT, MPT
    r"(self_)?attn\.qkv_proj",  # Phi-3, CodeGen
    r"(attention|self_attention|self_attn)\.query_key_value",  # GPT-NeoX, BLOOM, Falcon, Persimmon
    r"attention\.self\.in_proj",  # DeBERTa
)
"""Query, key and value in one layer: it is then adapted as a whole."""

_ATTN = r"(self_attn|encoder_attn|attn\.attention|attn)"  # Llama, OPT; BART's cross attention; GPT-Neo; GPT-J

ROLES: dict[str, tuple[str, ...]] = {
    "query": (
        r"attention\.self\.query(_proj)?",  # BERT and its family; DeBERTa-v2 and v3
        r"attention\.query",  # ALBERT
        r"attention\.attn\.q",  # MPNet
        r"attention\.q_head",  # Funnel
        r"(attention|attentions\.\d+)\.q_lin",  # DistilBERT; XLM
        r"(Self|EncDec)Attention\.q",  # T5
        r"multi_head_attention\.Wq",  # CTRL
        rf"{_ATTN}\.q(_a|_b)?_proj",  # two layers in DeepSeek-V2 and V3
        *_FUSED,
    ),
    "key": (
        r"attention\.self\.key(_proj)?",
        r"attention\.key",
        r"attention\.attn\.k",
        r"attention\.k_head",
        r"(attention|attentions\.\d+)\.k_lin",
        r"(Self|EncDec)Attention\.k",
        r"multi_head_attention\.Wk",
        rf"{_ATTN}\.k_proj",
        r"self_attn\.kv_(a_proj_with_mqa|b_proj)",  # DeepSeek: key and value
        *_FUSED,
    ),
    "value": (
        r"attention\.self\.value(_proj)?",
        r"attention\.value",
        r"attention\.attn\.v",
        r"attention\.v_head",
        r"(attention|attentions\.\d+)\.v_lin",
        r"(Self|EncDec)Attention\.v",
        r"multi_head_attention\.Wv",
        rf"{_ATTN}\.v_proj",
        r"self_attn\.kv_(a_proj_with_mqa|b_proj)",
        *_FUSED,
    ),
    "output": (
        r"attention\.output\.dense",  # BERT and its family, DeBERTa
        r"(albert_)?layers\.\d+\.attention\.dense",  # ALBERT, GPT-NeoX
        r"(self_attention|self_attn|multi_head_attention)\.dense",  # BLOOM, Falcon; Phi
        r"attention\.attn\.o",
        r"attention\.post_proj",
        r"(attention|attentions\.\d+)\.out_lin",
        r"(Self|EncDec)Attention\.o",
        r"attn\.(c_proj|Wo)",  # GPT-2; ModernBERT
        rf"{_ATTN}\.o(ut)?_proj",
    ),
    "mlp": (
        # Both "dense" below a layer, never the pooler's. MobileBERT has several such pairs in a layer.
        r"layer\.\d+\.(ffn\.\d+\.)?(intermediate|output)\.dense",
        r"albert_layers\.\d+\.ffn(_output)?",
        r"(ffn|ffns\.\d+)\.(lin[12]|linear_[12]|[02])",  # DistilBERT, XLM; Funnel; CTRL
        r"ff\.layer_[12]",  # XLNet
        r"DenseReluDense\.w(i|i_0|i_1|o)",  # T5; wi_0 and wi_1 in the gated versions
        r"mlp\.W[io]",
        r"mlp\.(c_fc|c_proj|fc_in|fc_out|fc1|fc2)",  # GPT-2, StarCoder2; GPT-J, CodeGen; Phi
        r"layers\.\d+\.fc[12]",  # OPT, BART
        r"mlp\.dense_(h_to_4h|4h_to_h)",  # GPT-NeoX, BLOOM, Falcon
        # Llama, Qwen, Gemma, Phi-3; the experts that every token sees in Qwen-MoE and DeepSeek; MPT; LFM2.
        r"(mlp|feed_forward|ffn|shared_experts?)\.(gate|up|down|gate_up)_proj",
        r"feed_forward\.w[123]",
    ),
}
"""Role -> ends of module paths."""

SETS: dict[str, tuple[str, ...]] = {
    "qv": ("query", "value"),
    "attention": ("query", "key", "value", "output"),
    "mlp": ("mlp",),
}
"""Target set -> the roles it asks for; all of them must be there."""
