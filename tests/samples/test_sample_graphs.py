"""Drawn samples run: on each small graph, ONNX Runtime takes what its rule computed."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from laurel_graph.errors import ModelError
from laurel_graph.samples import Sampler, has_masks, sample_inputs

RNG = np.random.default_rng(0)
FLOAT, INT64, INT32, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL
MICROSOFT = "com.microsoft"


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def graph(nodes, inputs, outputs, constants, opset=17):
    """A model of nodes; inputs are name to (type, dims), constants name to array."""
    values = [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in inputs.items()]
    made = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()]
    held = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(helper.make_graph(nodes, "g", values, made, held), opset_imports=imports, ir_version=8)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def run(model, sample):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, sample)


def shapes(sample):
    return {name: array.shape for name, array in sample.items()}


def runs(model, batches=(1, 3), **options):
    """Runs a model in each of its situations; returns their names with the shapes."""
    sampler = Sampler(model, **options)
    found = []
    for at in sampler.situations(batches):
        sample = sampler.draw(at)
        run(model, sample)
        found.append((at, sample))
    return found


# ---- what weights and shapes pin ---------------------------------------------------------------------------------


def test_channels_are_those_of_the_weight_when_an_image_is_convolved():
    model = graph(
        [node("Conv", "x w", "y", pads=[1, 1, 1, 1])],
        {"x": (FLOAT, ["n", "num_channels", "h", "w_"])},
        {"y": FLOAT},
        {"w": floats(4, 3, 3, 3)},
    )
    (first, sample), _ = runs(model)
    assert sample["x"].shape == (1, 3, 224, 224)
    assert first.values["num_channels"] == 3


def test_image_is_as_large_as_the_positions_say_when_patches_are_added_to_them():
    nodes = [
        node("Conv", "x w", "p", strides=[8, 8]),
        node("Reshape", "p flat", "f"),
        node("Transpose", "f", "t", perm=[0, 2, 1]),
        node("Add", "t positions", "y"),
    ]
    constants = {"w": floats(6, 3, 8, 8), "flat": np.array([0, 6, -1]), "positions": floats(1, 16, 6)}
    model = graph(nodes, {"x": (FLOAT, ["n", "c", "h", "w_"])}, {"y": FLOAT}, constants)
    assert runs(model)[0][1]["x"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize(("op", "weight"), [("MatMul", (20, 5)), ("Gemm", (20, 5))])
def test_width_is_that_of_the_weight_when_rows_are_multiplied(op, weight):
    model = graph([node(op, "x w", "y")], {"x": (FLOAT, ["n", "width"])}, {"y": FLOAT}, {"w": floats(*weight)})
    assert runs(model)[0][1]["x"].shape == (1, 20)


def test_signal_is_as_long_as_the_head_says_when_it_is_convolved_and_flattened():
    nodes = [node("Conv", "x w", "c", strides=[4]), node("Flatten", "c", "f"), node("Gemm", "f v", "y")]
    constants = {"w": floats(2, 1, 8), "v": floats(2 * 25, 3)}
    model = graph(nodes, {"x": (FLOAT, ["n", 1, "length"])}, {"y": FLOAT}, constants)
    runs(model)


def test_signal_grows_when_the_default_is_shorter_than_the_windows():
    nodes = [node("Conv", "x w", "a", strides=[5]), node("Conv", "a v", "y", strides=[4])]
    model = graph(nodes, {"x": (FLOAT, ["n", 1, "t"])}, {"y": FLOAT}, {"w": floats(2, 1, 10), "v": floats(2, 2, 8)})
    assert runs(model)[0][1]["x"].shape[2] > 16


def test_side_is_a_multiple_of_the_strides_when_two_scales_are_joined():
    nodes = [
        node("Conv", "x w", "low", strides=[2, 2]),
        node("Resize", "low  scales", "up"),
        node("Concat", "x up", "y", axis=1),
    ]
    nodes[1].input[:] = ["low", "", "scales"]
    constants = {"w": floats(3, 3, 2, 2), "scales": np.array([1, 1, 2, 2], np.float32)}
    model = graph(nodes, {"x": (FLOAT, [1, 3, "h", "w_"])}, {"y": FLOAT}, constants)
    runs(model)


def test_batch_is_fixed_when_a_requested_shape_says_so():
    nodes = [node("Reshape", "x shape", "r"), node("MatMul", "r w", "y")]
    constants = {"shape": np.array([2, 6, 4]), "w": floats(4, 3)}
    model = graph(nodes, {"x": (FLOAT, ["n", 24])}, {"y": FLOAT}, constants)
    found = runs(model)
    assert [sample["x"].shape for _, sample in found] == [(2, 24)]


def test_two_inputs_are_of_one_length_when_they_are_added_or_put_together():
    nodes = [node("Add", "a b", "s"), node("Concat", "s c", "y", axis=2)]
    inputs = {"a": (FLOAT, ["n", "p", "q", 2]), "b": (FLOAT, ["n", "r", "s_", 2]), "c": (FLOAT, ["m", "u", "v", 2])}
    model = graph(nodes, inputs, {"y": FLOAT}, {})
    sizes = runs(model, sizes={"r": 3, "q": 5})[1][0].values
    assert (sizes["p"], sizes["u"], sizes["s_"], sizes["m"]) == (3, 3, 5, 3)


def test_state_fits_the_weights_when_a_network_is_recurrent():
    inputs = {"x": (FLOAT, ["time", "n", "features"]), "h0": (FLOAT, [1, "n", "hidden"])}
    inputs["lengths"] = (INT32, ["n"])
    nodes = [helper.make_node("GRU", ["x", "w", "r", "", "lengths", "h0"], ["y"], hidden_size=6)]
    model = graph(nodes, inputs, {"y": FLOAT}, {"w": floats(1, 18, 5), "r": floats(1, 18, 6)})
    sample = runs(model)[1][1]
    assert shapes(sample) == {"x": (16, 3, 5), "h0": (1, 3, 6), "lengths": (3,)}
    assert (sample["lengths"] == 16).all()


# ---- what integers index -----------------------------------------------------------------------------------------


def test_ids_stay_below_the_smallest_table_when_they_look_up_several():
    nodes = [node("Gather", "big ids", "a"), node("Gather", "small ids", "b"), node("Add", "a b", "y")]
    model = graph(nodes, {"ids": (INT64, ["n", "s"])}, {"y": FLOAT}, {"big": floats(50, 4), "small": floats(3, 4)})
    assert max(sample["ids"].max() for _, sample in runs(model)) < 3


def test_edges_stay_below_the_number_of_nodes_when_features_are_gathered_and_scattered():
    nodes = [
        node("Split", "edges", "from to", axis=0),
        node("Squeeze", "from zero", "f"),
        node("Squeeze", "to zero", "t"),
        node("Gather", "x f", "sent"),
        node("Unsqueeze", "t one", "rows"),
        node("ScatterND", "x rows sent", "y", reduction="add"),
    ]
    inputs = {"x": (FLOAT, ["nodes", 4]), "edges": (INT64, [2, "edge_count"])}
    model = graph(nodes, inputs, {"y": FLOAT}, {"zero": np.array([0]), "one": np.array([1])})
    for at, sample in runs(model, sizes={"nodes": 6, "edge_count": 40}):
        assert sample["edges"].shape == (2, 40)
        assert sample["edges"].max() == at.values["nodes"] - 1


def test_sequence_ends_in_the_table_when_positions_are_counted():
    nodes = [
        node("Shape", "ids", "shape"),
        node("Gather", "shape one", "length"),
        node("Range", "zero length one", "count"),
        node("Gather", "positions count", "p"),
        node("Gather", "words ids", "w"),
        node("Add", "w p", "y"),
    ]
    constants = {"zero": np.array(0), "one": np.array(1), "positions": floats(10, 4), "words": floats(30, 4)}
    model = graph(nodes, {"ids": (INT64, ["n", "s"])}, {"y": FLOAT}, constants)
    assert runs(model)[0][1]["ids"].shape == (1, 8)


# ---- decoders ----------------------------------------------------------------------------------------------------


def concat_decoder(mask="past_sequence_length + 1", tokens=1, past="past_sequence_length", rows=40):
    """One layer as optimum writes it: keys put behind a cache, scores with a mask, positions in a table."""
    nodes = [
        node("Gather", "words ids", "e"),
        node("Gather", "table position_ids", "p"),
        node("Add", "e p", "x"),
        node("MatMul", "x w", "q"),
        node("Reshape", "q heads", "q4"),
        node("Transpose", "q4", "k", perm=[0, 2, 1, 3]),
        node("Concat", "past_key_values.0.key k", "present.0.key", axis=2),
        node("Transpose", "present.0.key", "kt", perm=[0, 1, 3, 2]),
        node("MatMul", "k kt", "scores"),
        node("Cast", "attention_mask", "m", to=FLOAT),
        node("Unsqueeze", "m axes", "m4"),
        node("Add", "scores m4", "masked"),
        node("Softmax", "masked", "probs", axis=-1),
        node("MatMul", "probs present.0.key", "y"),
    ]
    inputs = {
        "ids": (INT64, ["batch_size", tokens]),
        "attention_mask": (INT64, ["batch_size", mask]),
        "position_ids": (INT64, ["batch_size", tokens]),
        "past_key_values.0.key": (FLOAT, ["batch_size", 2, past, "head"]),
    }
    constants = {
        "words": floats(30, 8),
        "table": floats(rows, 8),
        "w": floats(8, 8),
        "heads": np.array([0, 0, 2, 4]),
        "axes": np.array([1, 2]),
    }
    return graph(nodes, inputs, {"y": FLOAT, "present.0.key": FLOAT}, constants)


def test_decoder_is_met_as_prompt_and_step_when_it_has_a_cache():
    model = concat_decoder("past_sequence_length + sequence_length", "sequence_length")
    found = {(at.name, at.batch, at.ragged): sample for at, sample in runs(model)}
    assert found["prompt", 1, False]["past_key_values.0.key"].shape == (1, 2, 0, 4)
    assert found["prompt", 1, False]["attention_mask"].shape == (1, 16)
    step = found["step", 3, False]
    assert step["ids"].shape == (3, 1)
    assert step["attention_mask"].shape == (3, 1 + step["past_key_values.0.key"].shape[2])
    assert (step["position_ids"] == step["past_key_values.0.key"].shape[2]).all()
    assert found["step", 3, True]["attention_mask"].min() == 0


def test_mask_is_one_longer_than_the_cache_when_a_decoder_takes_one_token():
    for at, sample in runs(concat_decoder()):
        assert sample["attention_mask"].shape[1] == at.values["past_sequence_length"] + 1


@pytest.mark.parametrize("mask", ["total_length", "", "sequence_length"])
def test_mask_spans_cache_and_tokens_when_its_dim_has_another_name(mask):
    tokens = "tokens"
    for at, sample in runs(concat_decoder(mask or None, tokens, past="anything")):
        assert sample["attention_mask"].shape[1] == at.values["anything"] + at.values["tokens"]


def test_cache_and_tokens_fit_the_table_when_positions_end_early():
    model = concat_decoder("past_sequence_length + sequence_length", "sequence_length", rows=9)
    for _, sample in runs(model):
        assert sample["position_ids"].max() < 9
        assert sample["attention_mask"].shape[1] <= 9


def test_given_sizes_are_kept_when_one_of_them_is_zero():
    model = concat_decoder("past_sequence_length + sequence_length", "sequence_length")
    for _, sample in runs(model, sizes={"past_sequence_length": 0, "sequence_length": 5}):
        assert sample["past_key_values.0.key"].shape[2] == 0
        assert sample["attention_mask"].shape[1] == 5


def query_decoder(cached=64, window=-1, rolling=False, new="sequence_length", past="past_sequence_length"):
    """GroupQueryAttention with its mask subgraph, as ONNX Runtime GenAI's builder writes it."""
    attributes = {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1, "local_window_size": window}
    if rolling:
        attributes["sliding_window_cache"] = 1
    attention = ["x", "", "", "past_key", "past_value", "last", "total", "cos", "sin"]
    nodes = [
        node("ReduceSum", "attention_mask one", "counts", keepdims=0),
        node("Sub", "counts one", "counted"),
        node("Cast", "counted", "last", to=INT32),
        node("Shape", "attention_mask", "shape"),
        node("Gather", "shape index", "length"),
        node("Cast", "length", "total", to=INT32),
        node("Gather", "words input_ids", "e"),
        node("MatMul", "e w", "x"),
        helper.make_node("GroupQueryAttention", attention, ["y", "key", "value"], domain=MICROSOFT, **attributes),
    ]
    cache = (FLOAT, ["batch_size", 2, past, "kv_cache_dim"])
    inputs = {
        "input_ids": (INT64, ["batch_size", new]),
        "attention_mask": (INT64, ["batch_size", "total_sequence_length"]),
        "past_key": cache,
        "past_value": cache,
    }
    constants = {
        "one": np.array([1]),
        "index": np.array(1),
        "words": floats(30, 8),
        "w": floats(8, 8 * 16),
        "cos": floats(cached, 8),
        "sin": floats(cached, 8),
    }
    return graph(nodes, inputs, {"y": FLOAT, "key": FLOAT, "value": FLOAT}, constants)


def test_head_size_is_computed_when_queries_come_packed():
    found = {(at.name, at.batch, at.ragged): at for at, _ in runs(query_decoder())}
    assert {at.values["kv_cache_dim"] for at in found.values()} == {16}
    step = found["step", 3, False].values
    assert step["total_sequence_length"] == step["past_sequence_length"] + 1
    assert found["prompt", 1, False].values["past_sequence_length"] == 0


def test_prompt_fits_the_rotary_cache_when_it_is_short():
    for at, _ in runs(query_decoder(cached=6)):
        assert at.values["total_sequence_length"] <= 6


def test_step_goes_beyond_the_window_when_attention_slides():
    found = {at.name: at.values for at, _ in runs(query_decoder(window=20))}
    assert found["window"]["past_sequence_length"] > 20


def test_buffer_is_full_when_a_cache_rolls():
    found = [at for at, _ in runs(query_decoder(window=24, rolling=True))] if _rolls() else []
    if not found:
        found = Sampler(query_decoder(window=24, rolling=True)).situations((1, 3))
    for at in found:
        assert at.values["past_sequence_length"] == 24
        assert at.values["total_sequence_length"] > 24


def _rolls():
    """Whether this ONNX Runtime knows caches that roll."""
    try:
        run(query_decoder(window=24, rolling=True), sample_inputs(query_decoder(window=24, rolling=True)))
    except Exception:
        return False
    return True


def test_both_branches_are_taken_when_a_decoder_is_merged():
    then = helper.make_graph(
        [node("Concat", "past k", "with_past", axis=2)],
        "then",
        [],
        [helper.make_tensor_value_info("with_past", FLOAT, None)],
    )
    other = helper.make_graph(
        [node("Identity", "k", "alone")], "else", [], [helper.make_tensor_value_info("alone", FLOAT, None)]
    )
    nodes = [
        node("Gather", "words ids", "e"),
        node("Reshape", "e heads", "k4"),
        node("Transpose", "k4", "k", perm=[0, 2, 1, 3]),
        helper.make_node("If", ["use_cache_branch"], ["y"], then_branch=then, else_branch=other),
    ]
    inputs = {
        "ids": (INT64, ["n", "s"]),
        "past": (FLOAT, ["n", 2, "past_length", 4]),
        "use_cache_branch": (BOOL, [1]),
    }
    model = graph(nodes, inputs, {"y": FLOAT}, {"words": floats(30, 8), "heads": np.array([0, 0, 2, 4])})
    taken = {at.name: bool(sample["use_cache_branch"][0]) for at, sample in runs(model)}
    assert taken == {"prompt": False, "step": True}


def test_cross_attention_is_as_long_as_its_mask_when_a_decoder_has_an_encoder():
    model = concat_decoder()
    model.graph.input.append(
        helper.make_tensor_value_info("encoder_attention_mask", INT64, ["batch_size", "encoder_length"])
    )
    dims = ["batch_size", 2, "encoder_length_out", 4]
    model.graph.input.append(helper.make_tensor_value_info("past_key_values.0.encoder.key", FLOAT, dims))
    model.graph.node.extend(
        [
            node("Transpose", "past_key_values.0.encoder.key", "ek", perm=[0, 1, 3, 2]),
            node("MatMul", "k ek", "cross"),
            node("Cast", "encoder_attention_mask", "em", to=FLOAT),
            node("Unsqueeze", "em axes", "em4"),
            node("Add", "cross em4", "z"),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("z", FLOAT, None))
    for at, _ in runs(model, sizes={"encoder_length": 9}):
        assert at.values["encoder_length_out"] == 9
        assert at.values["past_sequence_length"] != 9


# ---- names and errors --------------------------------------------------------------------------------------------


def test_error_lists_the_dims_when_a_size_names_none():
    with pytest.raises(ModelError, match=r"no input has a dim named 'widht'.*width"):
        Sampler(concat_decoder("width"), {"widht": 3})


def test_dim_without_a_name_takes_a_size_when_it_is_called_by_its_place():
    model = graph([node("Relu", "x", "y")], {"x": (FLOAT, [None, None])}, {"y": FLOAT}, {})
    assert sample_inputs(model, sizes={"x:1": 7})["x"].shape == (1, 7)


def test_masks_are_found_when_an_input_is_called_so():
    assert has_masks(concat_decoder())
    assert not has_masks(graph([node("Relu", "x", "y")], {"x": (FLOAT, ["n", 3])}, {"y": FLOAT}, {}))


def test_walk_of_a_large_graph_gives_sizes_when_nodes_are_many():
    nodes = [node("MatMul", "x w", "v0")]
    nodes += [node("Add" if i % 2 else "Relu", f"v{i} v{i}" if i % 2 else f"v{i}", f"v{i + 1}") for i in range(20000)]
    model = graph(nodes, {"x": (FLOAT, ["n", "d"])}, {"v20000": FLOAT}, {"w": floats(6, 6)})
    assert sample_inputs(model)["x"].shape == (1, 6)


def padded(lengths, rank_axes=(1,)):
    """Features times a mask that is made of lengths and of the places in a row."""
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape one", "time", axis=0),
        node("Range", "zero time step", "places"),
        node("Unsqueeze", f"{lengths} last", "column") if rank_axes == (1,) else node("Identity", lengths, "column"),
        node("Less", "places column", "mask"),
        node("Cast", "mask", "kept", to=FLOAT),
        node("Unsqueeze", "kept axis", "wide"),
        node("Mul", "x wide", "y"),
    ]
    dims = ["n"] if rank_axes == (1,) else ["n", 1]
    held = {"one": np.array(1), "zero": np.array(0), "step": np.array(1), "last": [1], "axis": [2]}
    return graph(nodes, {"x": (FLOAT, ["n", "t", 4]), lengths: (INT64, dims)}, {"y": FLOAT}, held)


@pytest.mark.parametrize(("lengths", "axes"), [("input_lengths", (1,)), ("how_far", (1,)), ("how_far", ())])
def test_lengths_that_make_a_mask_are_whole_rows(lengths, axes):
    model = padded(lengths, axes)
    sample = sample_inputs(model, batch=3)
    time = sample["x"].shape[1]
    assert (sample[lengths] == time).all()
    assert np.abs(run(model, sample)[0]).min(axis=(1, 2)).all()


def test_padded_rows_are_shorter_but_the_first():
    model = padded("how_far")
    assert has_masks(model)
    sample = sample_inputs(model, batch=3, ragged=True)
    time = sample["x"].shape[1]
    assert sample["how_far"].tolist() == [time, time - 3, time - 6]


def test_lengths_are_known_by_name_where_places_come_from_them():
    nodes = [
        node("ReduceMax", "x_lengths", "longest", keepdims=0),
        node("Range", "zero longest step", "places"),
        node("Cast", "places", "p", to=FLOAT),
        node("Unsqueeze", "p last", "column"),
        node("Add", "x column", "y"),
    ]
    held = {"zero": np.array(0), "step": np.array(1), "last": [1]}
    model = graph(nodes, {"x": (FLOAT, ["n", "t", 4]), "x_lengths": (INT64, ["n"])}, {"y": FLOAT}, held)
    sample = sample_inputs(model, batch=2)
    assert (sample["x_lengths"] == sample["x"].shape[1]).all()
    run(model, sample)
