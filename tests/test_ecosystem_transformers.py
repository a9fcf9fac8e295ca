"""Language models of Hugging Face transformers, with random weights, trained and used after convert."""

import copy
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from accuracy import SUM_TERMS, assert_same_bits, unit_roundoff
from conftest import needs_native

import pytorch_ext
from pytorch_ext import optim

transformers = pytest.importorskip("transformers")
ALL_ATTENTION_FUNCTIONS = transformers.AttentionInterface()
SMALL = {"vocab_size": 61, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def gpt2():
    config = transformers.GPT2Config(
        n_positions=24, n_embd=64, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **SMALL
    )
    return transformers.GPT2LMHeadModel(config)


def bert():
    config = transformers.BertConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=24,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
        **SMALL,
    )
    return transformers.BertForMaskedLM(config)


def llama():
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=24,
        **SMALL,
    )
    return transformers.LlamaForCausalLM(config)


# model: some modules that convert replaces, and some whose calls it exchanges
MODELS = {
    gpt2: (
        ["transformer.h.0.attn.resid_dropout", "lm_head"],
        ["transformer.h.1.attn.c_attn", "transformer.h.0.mlp.act"],
    ),
    bert: (["bert.encoder.layer.1.attention.self.query", "cls.predictions.decoder"], []),
    llama: (
        ["model.layers.0.self_attn.k_proj", "model.layers.1.mlp.up_proj", "lm_head"],
        ["model.layers.0.mlp.act_fn"],
    ),
}
each_model = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
IDS = (torch.arange(4 * 20).view(4, 20) * 7 + torch.arange(4)[:, None]) % 50 + 3
MASK = (torch.arange(20) < torch.tensor([20, 17, 20, 9])[:, None]).long()


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def pair(make, attention="sdpa"):
    """(converted model, stock model) of the same weights."""
    torch.manual_seed(5)
    model = make()
    model.set_attn_implementation(attention)
    stock = copy.deepcopy(model)
    pytorch_ext.convert(model)
    return model, stock


def losses(model, optimizer=torch.optim.AdamW, steps=6):
    """The loss of every training step."""
    model.train()
    steps_of = optimizer(model.parameters(), lr=1e-3)
    curve = []
    for _ in range(steps):
        steps_of.zero_grad()
        loss = model(input_ids=IDS, attention_mask=MASK, labels=IDS).loss
        loss.backward()
        steps_of.step()
        curve.append(loss.detach().double())
    return torch.stack(curve)


@each_model
def test_the_report_says_what_became_of_the_layers(make):
    model = make()
    report = pytorch_ext.convert(model)
    replaced, rewritten = MODELS[make]
    assert set(replaced) <= set(report.paths("replaced")) and set(rewritten) <= set(report.paths("rewritten"))
    pytorch_ext.revert(model)
    assert type(model) is type(make()) and not any(type(m).__module__ == "pytorch_ext.nn" for m in model.modules())


def test_converting_twelve_layers_takes_less_than_a_second():
    config = transformers.LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=12, **SMALL)
    model = transformers.LlamaForCausalLM(config)
    start = time.process_time()
    report = pytorch_ext.convert(model)
    assert time.process_time() - start < 1
    assert len([path for path in report.paths("rewritten") if path.endswith("self_attn")]) == 12


@each_model
def test_training_has_the_losses_of_stock_within_the_accuracy_rule(make):
    model, stock = pair(make)
    exact = losses(copy.deepcopy(stock).double())
    mine, theirs = losses(model, optim.AdamW), losses(stock)
    allowed = max(
        2 * float((theirs - exact).abs().max()), SUM_TERMS * unit_roundoff(torch.float32) * float(exact.max())
    )
    assert float((mine - exact).abs().max()) <= allowed and mine[-1] < mine[0]


@needs_native
@each_model
def test_weights_after_training_do_not_depend_on_the_threads(make):
    states, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            model, _ = pair(make)
            for module in model.modules():
                if isinstance(module, torch.nn.LayerNorm):  # stock sums the gradients of its weights thread by thread
                    module.requires_grad_(False)
            losses(model, optim.AdamW, steps=3)
            states.append(model.state_dict())
    finally:
        torch.set_num_threads(before)
    for name, weight in states[0].items():
        assert_same_bits(weight, states[1][name], name)


@needs_native
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@each_model
def test_no_product_no_attention_and_no_loss_is_left_to_stock(make, attention):
    model, _ = pair(make, attention)
    explained = pytorch_ext.explain(model, {"input_ids": IDS, "attention_mask": MASK, "labels": IDS})
    products = ("mm", "addmm", "bmm", "_scaled_dot_product", "_softmax", "gelu", "silu", "_log_softmax", "nll_loss")
    assert not [row for row in explained if row.path == "stock" and row.op.removeprefix("aten.").startswith(products)]
    ops = [row.op for row in explained if row.path == "native-cpu"]
    assert ops.count("scaled_dot_product_attention" if attention == "sdpa" else "softmax") == 2
    assert ops.count("cross_entropy") == 1


def test_checkpointed_layers_run_twice_as_stock_s_do():
    """Their forward is wrapped by transformers, for every class derived from them once more."""
    config = transformers.BartConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        dropout=0,
        max_position_embeddings=24,
        **SMALL,
    )
    model, stock = pair(lambda: transformers.BartForConditionalGeneration(config))
    assert type(model.model.encoder.layers[0]).__mro__[1] is type(stock.model.encoder.layers[0])
    counts = []
    for m in (model, stock):
        runs = []
        m.model.encoder.layers[0].self_attn_layer_norm.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        m.model.decoder.layers[1].self_attn_layer_norm.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        m.gradient_checkpointing_enable()
        m.train()(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        counts.append(len(runs))
    assert counts[0] == counts[1] == 4
    for p, q in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5)


@needs_native
def test_one_compiled_graph_has_our_attention():
    model, stock = pair(llama)
    targets = set()

    def backend(graph, inputs):
        targets.update(str(node.target) for node in graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    arguments = {"input_ids": IDS, "attention_mask": MASK}
    torch.testing.assert_close(compiled(**arguments).logits, stock(**arguments).logits, rtol=1e-4, atol=1e-5)
    assert "pytorch_ext.scaled_dot_product_attention" in targets
    assert not any("aten" in name or "built-in function scaled_dot" in name for name in targets)


class Older(torch.nn.Module):
    """The table asked as transformers' layers did before get_interface."""

    is_causal, config = True, "sdpa"

    def forward(self, q):
        attention = ALL_ATTENTION_FUNCTIONS[self.config]
        return attention(self, q, q, q, None)[0]


class Own(Older):
    """A function of the user's own in the table."""

    config = "of the user"


@needs_native
def test_a_table_that_is_subscripted_and_functions_that_are_none_of_transformers():
    def of_user(module, q, k, v, mask, **options):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).mT, None

    transformers.AttentionInterface.register("of the user", of_user)
    q = torch.randn(2, 4, 5, 8)
    for make in (Older, Own):
        model, stock = make(), make()
        report = pytorch_ext.convert(model)
        assert report.paths("rewritten") == [""] and "ALL_ATTENTION_FUNCTIONS[self.config]" in str(report)
        torch.testing.assert_close(model(q), stock(q))
        assert "scaled_dot_product_attention" in [row.op for row in pytorch_ext.explain(model, q)]
        pytorch_ext.revert(model)
        assert type(model) is make


def test_a_pickled_model_finds_its_attention_in_another_process(tmp_path):
    """Which knows nothing of the table yet."""
    model, _ = pair(llama)
    model.eval()
    torch.save((model, IDS, model(input_ids=IDS).logits), tmp_path / "model.pt")
    code = (
        "import torch, pytorch_ext; model, ids, logits = torch.load('model.pt', weights_only=False);"
        "assert torch.equal(model(input_ids=ids).logits, logits);"
        "rows = pytorch_ext.explain(model, {'input_ids': ids}, backward=False);"
        "print([row.op for row in rows].count('scaled_dot_product_attention'))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(pytorch_ext.__file__).parent.parent)])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ("2" if pytorch_ext.native.library is not None else "0")


@each_model
def test_checkpoints_of_transformers_go_both_ways(make, tmp_path):
    model, stock = pair(make)
    losses(model, steps=1)
    model.save_pretrained(tmp_path)
    loaded = type(stock).from_pretrained(tmp_path)
    for name, weight in model.state_dict().items():
        assert_same_bits(weight, loaded.state_dict()[name], name)
    stock.load_state_dict(model.state_dict())
    model.eval(), stock.eval(), loaded.eval()
    expected = model(input_ids=IDS, attention_mask=MASK).logits
    for other in (stock, loaded):
        torch.testing.assert_close(other(input_ids=IDS, attention_mask=MASK).logits, expected, rtol=1e-4, atol=1e-5)
    pytorch_ext.convert(loaded)
    assert_same_bits(loaded(input_ids=IDS, attention_mask=MASK).logits, expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make", [gpt2, llama], ids=lambda make: make.__name__)
def test_generate_writes_what_stock_writes(make, attention):
    model, stock = pair(make, attention)
    losses(stock, steps=20)  # no two tokens equally likely
    model.load_state_dict(stock.state_dict())
    prompt, mask = IDS[:2, :6], torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    for options in ({"do_sample": False}, {"num_beams": 2, "do_sample": False}):
        written = [
            m.eval().generate(input_ids=prompt, attention_mask=mask, max_new_tokens=8, **options)
            for m in (model, stock)
        ]
        assert torch.equal(*written) and written[0].shape[1] > 6
