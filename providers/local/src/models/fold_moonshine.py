"""Rewrites Moonshine's published decoder so that a step costs a sixth.

The published graph keeps its weights as 8-bit integers which it expands again on every step, and
holds the first step and all further steps as the two branches of one `If`. Here the expansion is
evaluated once, the branches become graphs of their own, and their matrix products are quantised.

usage: fold_moonshine.py ENCODER.ort DECODER.ort FIRST.onnx NEXT.onnx
"""

import copy
import os
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

LAYERS = 8
HEADS = 8
HEAD_SIZE = 52
HIDDEN = 416


def options(level):
    made = ort.SessionOptions()
    made.graph_optimization_level = level
    made.log_severity_level = 3
    return made


def as_onnx(decoder, path):
    """Lets ONNX Runtime write its own format as plain ONNX."""
    made = options(ort.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    made.optimized_model_filepath = path
    made.add_session_config_entry("session.save_model_format", "ONNX")
    ort.InferenceSession(decoder, made, providers=["CPUExecutionProvider"])
    return onnx.load(path)


def evaluate(graph, nodes, opset):
    """The values of `nodes`, which depend on weights only."""
    names = [name for node in nodes for name in node.output]
    outputs = [onnx.ValueInfoProto(name=name) for name in names]
    part = helper.make_graph(nodes, "weights", [], outputs, initializer=list(graph.initializer))
    model = helper.make_model(part, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    session = ort.InferenceSession(
        model.SerializeToString(),
        options(ort.GraphOptimizationLevel.ORT_DISABLE_ALL),
        providers=["CPUExecutionProvider"],
    )
    return dict(zip(names, session.run(names, {})))


def branch_model(graph, branch, values, opset):
    """A branch of the `If` as a model of its own."""
    used = {name for node in branch.node for name in node.input}
    weights = {weight.name: weight for weight in graph.initializer}
    initializers = list(branch.initializer)
    # In order of name, so that the same input gives the same bytes.
    for name in sorted(used):
        if name in values:
            initializers.append(numpy_helper.from_array(values[name], name))
        elif name in weights:
            initializers.append(weights[name])
    nodes = list(branch.node)
    outputs = []
    for inner, outer in zip(branch.output, graph.output):
        renamed = copy.deepcopy(outer)
        renamed.name = outer.name + "_out"
        nodes.append(helper.make_node("Identity", [inner.name], [renamed.name]))
        outputs.append(renamed)
    inputs = [value for value in graph.input if value.name in used]
    made = helper.make_graph(nodes, "decoder", inputs, outputs, initializer=initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    return model


def names():
    kinds = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")
    return [f"{layer}.{kind}" for layer in range(LAYERS) for kind in kinds]


def check(encoder, decoder, first, next_):
    """Two steps of the published decoder and of ours must rank tokens alike."""
    load = lambda path: ort.InferenceSession(
        path,
        options(ort.GraphOptimizationLevel.ORT_ENABLE_ALL),
        providers=["CPUExecutionProvider"],
    )
    time = np.arange(16000, dtype=np.float32) / 16000
    sound = (0.1 * np.sin(2 * np.pi * 180 * time) * np.sin(2 * np.pi * 3 * time)).astype(np.float32)
    hidden = load(encoder).run(["last_hidden_state"], {"input_values": sound[None]})[0]
    assert hidden.shape[2] == HIDDEN, hidden.shape
    theirs, ours_first, ours_next = load(decoder), load(first), load(next_)

    token = np.array([[1]], dtype=np.int64)
    past = {
        f"past_key_values.{name}": np.zeros((1, HEADS, 0, HEAD_SIZE), np.float32) for name in names()
    }
    feed = {"input_ids": token, "encoder_hidden_states": hidden, "use_cache_branch": np.array([False])}
    outs = ["logits"] + [f"present.{name}" for name in names()]
    expected = theirs.run(outs, feed | past)
    found = ours_first.run(
        [name + "_out" for name in outs], {"input_ids": token, "encoder_hidden_states": hidden}
    )
    alike(expected[0], found[0])

    past = {f"past_key_values.{name}": value for name, value in zip(names(), expected[1:])}
    token = np.array([[int(expected[0].argmax())]], dtype=np.int64)
    feed = {"input_ids": token, "encoder_hidden_states": hidden, "use_cache_branch": np.array([True])}
    expected = theirs.run(["logits"], feed | past)
    wanted = {value.name for value in ours_next.get_inputs()}
    feed = {name: value for name, value in (feed | past).items() if name in wanted}
    alike(expected[0], ours_next.run(["logits_out"], feed)[0])


def alike(expected, found):
    a, b = expected.ravel().astype(np.float64), found.ravel().astype(np.float64)
    cosine = a @ b / np.sqrt((a @ a) * (b @ b))
    if not cosine > 0.99:
        sys.exit(f"the rewritten decoder differs from the published one: cosine {cosine:.4f}")


def main():
    encoder, decoder, first, next_ = sys.argv[1:]
    with tempfile.TemporaryDirectory(dir=os.path.dirname(first)) as scratch:
        graph_model = as_onnx(decoder, os.path.join(scratch, "merged.onnx"))
        graph = graph_model.graph
        (choice,) = [node for node in graph.node if node.op_type == "If"]
        others = [node for node in graph.node if node.op_type != "If"]
        opset = next(i.version for i in graph_model.opset_import if i.domain in ("", "ai.onnx"))
        values = evaluate(graph, others, opset)
        branches = {attribute.name: attribute.g for attribute in choice.attribute}
        for branch, path in (("else_branch", first), ("then_branch", next_)):
            plain = os.path.join(scratch, branch + ".onnx")
            onnx.save(branch_model(graph, branches[branch], values, opset), plain)
            quantize_dynamic(
                plain,
                path,
                weight_type=QuantType.QUInt8,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=False,
                extra_options={"MatMulConstBOnly": True},
            )
    check(encoder, decoder, first, next_)


main()
