"""What people do with a Hugging Face model goes on when LAuReL is attached; tiny random models."""

import copy
import io

import pytest
import safetensors.torch
import torch

import laurel_graph as lg
from laurel_graph.errors import ModelError

accelerate = pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True, scope="module")
def _trainers_leave_nothing_behind():
    """A Trainer fixes the precision of every later Accelerator of the process."""
    yield
    state = pytest.importorskip("accelerate.state")
    state.AcceleratorState._reset_state(reset_partial_state=True)
    state.GradientState._reset_state()


SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def ids(length=7, rows=2):
    return torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(0))


def llama():
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, num_key_value_heads=2, attention_dropout=0.1)
    )


def mixtral():
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
    )


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, num_labels=3))


def t5():
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=64, d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8, decoder_start_token_id=0
        )
    )


def vit():
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            num_labels=3,
        )
    )


def whisper():
    return transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=64,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            num_mel_bins=8,
            max_source_positions=16,
            max_target_positions=32,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            suppress_tokens=[],
            begin_suppress_tokens=[],
        )
    )


FAMILIES = {
    "llama": (llama, 4, {"input_ids": ids()}),
    "mixtral": (mixtral, 4, {"input_ids": ids()}),
    "bert": (bert, 4, {"input_ids": ids()}),
    "t5": (t5, 10, {"input_ids": ids(), "decoder_input_ids": ids(5)}),
    "vit": (vit, 4, {"pixel_values": torch.randn(2, 3, 32, 32)}),
    "whisper": (whisper, 10, {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": ids(5)}),
}


def logits(model, named):
    with torch.no_grad():
        return model(**named).logits


def noise(model, std=0.2):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, std, generator=generator)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """Name, base, attached and moved model, inputs."""
    make, joins, named = FAMILIES[request.param]
    torch.manual_seed(0)
    base = make().eval().requires_grad_(False)
    model = copy.deepcopy(base)
    report = lg.attach(model, lg.LaurelConfig(variant="rw+lr+pa", rank=3), kwargs=named)
    assert len(report.plans) == joins, report
    assert set(report.ways.values()) == {"rewritten"}
    assert torch.equal(logits(model, named), logits(base, named))
    noise(model)
    assert not torch.allclose(logits(model, named), logits(base, named))
    return request.param, base, model, named


def test_generated_tokens_are_the_same_when_the_cache_is_off(family):
    name, _, model, named = family
    if name in ("bert", "vit"):
        pytest.skip("it generates nothing")
    given = {key: value for key, value in named.items() if not key.startswith("decoder")}
    if "input_ids" in given:
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        given["attention_mask"][0, :3] = 0  # left padding
    made = [
        model.generate(**given, max_new_tokens=6, do_sample=False, pad_token_id=0, use_cache=cache)
        for cache in (True, False)
    ]
    assert torch.equal(*made)


def test_gradients_are_the_same_when_blocks_are_checkpointed(family):
    name, _, model, named = family
    labels = torch.tensor([0, 1]) if name in ("bert", "vit") else next(reversed(named.values()))
    given = {key: value for key, value in named.items() if not key.startswith("decoder")}
    gradients = []
    for checkpointing in (False, True):
        own = copy.deepcopy(model).train()
        for part in own.modules():
            for rate in ("p", "dropout", "attention_dropout"):
                if isinstance(getattr(part, rate, None), float):
                    setattr(part, rate, 0.0)
        if checkpointing:
            own.gradient_checkpointing_enable({"use_reentrant": False})
        own(**given, labels=labels).loss.backward()
        gradients.append({n: p.grad for n, p in own.named_parameters() if p.requires_grad})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient)


def test_tuned_model_is_back_when_base_and_adapter_are_loaded(family, tmp_path):
    _, base, model, named = family
    base.save_pretrained(tmp_path)
    lg.save_adapter(model, tmp_path)
    loaded = type(base).from_pretrained(tmp_path).eval()
    lg.load_adapter(loaded, tmp_path, kwargs=named)
    assert torch.equal(logits(loaded, named), logits(model, named))


def test_base_is_back_when_detached(family):
    _, base, model, named = family
    own = lg.detach(copy.deepcopy(model))
    assert torch.equal(logits(own, named), logits(base, named))
    assert list(own.state_dict()) == list(base.state_dict())
    assert [type(part) for part in own.modules()] == [type(part) for part in base.modules()]


def test_copy_and_pickle_compute_the_same_when_made(family):
    _, _, model, named = family
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(logits(torch.load(file, weights_only=False), named), logits(model, named))


def test_other_lengths_half_precision_and_autocast_go_on_when_attached(family):
    _, _, model, named = family
    longer = {k: torch.cat([v, v], 1 if v.dtype == torch.long else 0) for k, v in named.items()}
    if "input_features" not in named:
        assert logits(model, longer).isfinite().all()
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in named.items()}
    assert logits(copy.deepcopy(model).bfloat16(), half).isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert logits(model, named).isfinite().all()


def test_lora_trains_beside_laurel_when_peft_is_put_on_top(family):
    peft = pytest.importorskip("peft")
    name, _, model, named = family
    if name == "mixtral":
        pytest.skip("peft does not know its fused experts by name")
    targets = ["query", "value", "q_proj", "v_proj", "q", "v"]
    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=targets))
    assert not any("laurel" in name for name in lg.trainable_parameters(wrapped))
    lg.set_adapter(wrapped)
    trains = lg.trainable_parameters(wrapped)
    assert any("laurel" in name for name in trains) and any("lora" in name for name in trains)
    torch.testing.assert_close(logits(wrapped, named), logits(model, named))
    wrapped(**named).logits.square().sum().backward()
    assert all(p.grad is not None for key, p in trains.items() if "laurel" in key)


def test_laurel_is_attached_beside_lora_when_peft_came_first():
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(llama().eval(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    lg.attach(wrapped, lg.LaurelConfig(variant="rw"), kwargs={"input_ids": ids()})
    trains = lg.trainable_parameters(wrapped)
    assert sum("lora" in name for name in trains) == 4 and sum("laurel" in name for name in trains) == 4
    lg.detach(wrapped)
    assert sum("lora" in name for name in lg.trainable_parameters(wrapped)) == 4


def test_hugging_face_model_needs_no_inputs_when_it_has_its_own():
    report = lg.attach(llama().eval(), lg.LaurelConfig(variant="rw"))
    assert len(report.plans) == 4


def test_large_model_is_looked_at_without_its_weights_when_they_are_on_meta():
    with torch.device("meta"):
        model = llama().eval()
    assert len(lg.attach(model, lg.LaurelConfig(variant="rw+lr"), kwargs={"input_ids": ids()}).plans) == 4


def test_config_is_as_it_was_when_attached_and_exported(tmp_path):
    torch.manual_seed(0)
    model = llama().eval()
    lg.attach(model, lg.LaurelConfig(variant="rw+lr", rank=3), kwargs={"input_ids": ids()})
    noise(model)
    path = lg.export_onnx(model, (), tmp_path / "m.onnx", kwargs={"input_ids": ids()})
    found = torch.from_numpy(lg.session(path).run(None, {"input_ids": ids().numpy()})[0])
    torch.testing.assert_close(found, logits(model, {"input_ids": ids()}), rtol=1e-4, atol=1e-5)
    assert model.config.use_cache is True
    assert model(input_ids=ids()).past_key_values is not None


def test_traced_route_takes_a_causal_model_when_it_would_keep_a_cache():
    model = llama().eval()
    result = lg.transform(model, lg.LaurelConfig(variant="rw"), ids())
    assert len(result.report.plans) == 4
    assert model.config.use_cache is True


def test_training_goes_on_where_it_stopped_when_the_trainer_resumes(tmp_path):
    torch.manual_seed(0)
    model = llama()
    lg.attach(model, lg.LaurelConfig(variant="rw+lr", rank=3), kwargs={"input_ids": ids()})
    start = copy.deepcopy(model)
    data = [{"input_ids": row, "labels": row} for row in ids(9, 8)]
    for steps in (2, 4):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=2,
            use_cpu=True,
            report_to=[],
            bf16=True,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            save_steps=2,
            max_steps=steps,
            disable_tqdm=True,
            logging_steps=1000,
            learning_rate=1e-2,
        )
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data)
        trainer.train(resume_from_checkpoint=steps == 4)
    assert trainer.state.global_step == 4
    for (name, now), before in zip(model.named_parameters(), start.parameters(), strict=True):
        assert torch.equal(now, before) != now.requires_grad or not now.requires_grad, name


def test_checkpoints_hold_what_trains_alone_when_asked_and_training_resumes_from_them(tmp_path):
    torch.manual_seed(0)
    model = llama()
    lg.attach(model, lg.LaurelConfig(variant="rw+lr", rank=3), kwargs={"input_ids": ids()})
    fresh = copy.deepcopy(model)
    data = [{"input_ids": row, "labels": row} for row in ids(9, 8)]

    def run(trained, steps, resume):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=2, use_cpu=True, report_to=[], save_steps=2,
            max_steps=steps, disable_tqdm=True, logging_steps=1000, learning_rate=1e-2,
        )  # fmt: skip
        transformers.Trainer(model=trained, args=arguments, train_dataset=data).train(resume_from_checkpoint=resume)

    with lg.adapter_checkpoints(model):
        run(model, 4, False)
    held = safetensors.torch.load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert set(held) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with lg.adapter_checkpoints(fresh):
        run(fresh, 4, str(tmp_path / "checkpoint-2"))
    for (name, found), wanted in zip(fresh.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, msg=name)
    model.save_pretrained(tmp_path / "whole")
    assert len(safetensors.torch.load_file(tmp_path / "whole" / "model.safetensors")) > len(held)


def spread(model):
    """As a device_map over several devices: accelerate lays a forward of its own on every module."""
    places = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    places |= {f"model.layers.{i}": "cpu" for i in range(2)}
    return accelerate.dispatch_model(model, places, main_device="cpu", force_hooks=True)


def offload(model):
    return accelerate.cpu_offload(model, execution_device="cpu")


@pytest.mark.parametrize("laid", [spread, offload])
def test_model_on_several_devices_is_attached_and_detached_as_any_other(laid):
    torch.manual_seed(0)
    model = llama().eval()
    before = logits(model, {"input_ids": ids()})
    laid(model)
    hooks = [module._hf_hook for module in model.modules() if hasattr(module, "_hf_hook")]
    report = lg.attach(model, lg.LaurelConfig(variant="rw+lr", rank=3), kwargs={"input_ids": ids()})
    assert len(report.plans) == 4 and torch.equal(logits(model, {"input_ids": ids()}), before)
    noise(model)
    assert not torch.allclose(logits(model, {"input_ids": ids()}), before, atol=1e-3)
    with lg.disabled(model):
        assert torch.equal(logits(model, {"input_ids": ids()}), before)
    lg.detach(model)
    assert torch.equal(logits(model, {"input_ids": ids()}), before)
    assert hooks == [module._hf_hook for module in model.modules() if hasattr(module, "_hf_hook")]


def test_checkpoints_of_the_adapter_are_refused_when_no_trainer_of_transformers_writes_them():
    with pytest.raises(ModelError, match="has no LAuReL attached"), lg.adapter_checkpoints(llama()):
        pass
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    block = Joined(model)
    lg.attach(block, lg.LaurelConfig(variant="rw"), torch.ones(2, 4))
    with pytest.raises(ModelError, match="is no model of transformers"), lg.adapter_checkpoints(block):
        pass


class Joined(torch.nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


def test_graph_is_whole_when_a_causal_model_is_compiled():
    torch.manual_seed(0)
    model = llama().eval()
    lg.attach(model, lg.LaurelConfig(variant="rw+lr+pa", rank=3), kwargs={"input_ids": ids()})
    noise(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = compiled(input_ids=ids(), use_cache=False).logits
    torch.testing.assert_close(found, logits(model, {"input_ids": ids()}), rtol=1e-4, atol=1e-5)


def test_dropout_is_on_when_the_attached_model_trains():
    model = llama().train()
    lg.attach(model, lg.LaurelConfig(variant="rw"), kwargs={"input_ids": ids()})
    assert model.training and all(part.training for part in model.modules())
    one, other = (model(input_ids=ids()).logits for _ in range(2))
    assert not torch.equal(one, other)
