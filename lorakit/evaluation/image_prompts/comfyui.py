"""The prompt of an image of ComfyUI: from the saved image to its sampler, and from there to the texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Node = Mapping[str, Any]
Graph = Mapping[str, Node]
MAX_NODES = 5000  # visited from one node
_TEXT_NAMES = (
    "text_g text_l clip_g clip_l t5xxl llama qwen text prompt positive_prompt wildcard_text populated_text"
    " string value string_a string_b text_a text_b text_c text_d text1 text2 text3 text4 text_2 text_3 text_4"
    " prefix suffix user_prompt preset_text"
)
_TEXTS = tuple(_TEXT_NAMES.split())
_SAMPLER_INPUTS = {"latent_image", "samples", "model", "guider"}
_SEPARATORS = ("delimiter", "separator", "join_with")
_NO_TEXT = frozenset(
    {"clip", "model", "vae", "image", "latent_image", "samples", "latent", "control_net", "mask", "pixels"}
)


@dataclass(frozen=True)
class GraphPrompt:
    """The prompt of a graph, its negative prompt and seed."""

    prompt: str
    negative: str = ""
    seed: int | None = None


def read_graph(graph: Any) -> GraphPrompt | None:
    """Return the prompt of a graph as ComfyUI's API has it, or of a workflow with nodes and links."""
    if isinstance(graph, dict) and isinstance(graph.get("nodes"), list):
        graph = _api_graph(graph)
    if not isinstance(graph, dict):
        return None
    nodes = {str(key): node for key, node in graph.items() if _is_node(node)}
    for sampler in _samplers(nodes):
        positive = _guided(nodes, sampler, "positive")
        prompt = _joined(_texts(nodes, positive, "positive", set()), ", ") if positive else ""
        if prompt:
            negative = _guided(nodes, sampler, "negative")
            text = _joined(_texts(nodes, negative, "negative", set()), ", ") if negative else ""
            return GraphPrompt(prompt, text, _seed(nodes, sampler))
    return None


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("inputs"), dict) and "class_type" in node


def _link(value: Any) -> str | None:
    """Return the id of the node that a value comes from; None for a value of its own."""
    is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int)
    return str(value[0]) if is_link and isinstance(value[1], int) else None


def _links(node: Node) -> Iterator[tuple[str, str]]:
    for name, value in node["inputs"].items():
        if (source := _link(value)) is not None:
            yield name, source


def _samplers(nodes: Graph) -> Iterator[Node]:
    """Yield the samplers, those nearest to a saved image first."""
    saved = [key for key, node in nodes.items() if "save" in node["class_type"].lower()]
    saved += [key for key, node in nodes.items() if "preview" in node["class_type"].lower()]
    pending, seen = saved or list(nodes), set[str]()
    while pending and len(seen) < MAX_NODES:
        key = pending.pop(0)
        node = nodes.get(key)
        if node is None or key in seen:
            continue
        seen.add(key)
        names = dict(_links(node))
        if _guided(nodes, node, "positive") and (
            {"latent_image", "samples", "model", "guider"} & names.keys()
        ):
            yield node
        pending += names.values()


def _guided(nodes: Graph, sampler: Node, role: str) -> str | None:
    """Return the node of a sampler's conditioning, which may come through a guider."""
    inputs = sampler["inputs"]
    if (source := _link(inputs.get(role))) is not None:
        return source
    guider = nodes.get(_link(inputs.get("guider")) or "")
    if guider is None:
        return None
    names = (role, "conditioning") if role == "positive" else (role,)
    return next((source for name in names if (source := _link(guider["inputs"].get(name)))), None)


def _texts(nodes: Graph, key: str, role: str, seen: set[str]) -> list[str]:
    """Return the texts that reach a node, each once, in the order of its inputs."""
    node = nodes.get(key)
    if node is None or key in seen or len(seen) > MAX_NODES or "ZeroOut" in node["class_type"]:
        return []
    seen.add(key)
    inputs = node["inputs"]
    named = [name for name in (*_TEXTS, *sorted(inputs)) if name in inputs and _is_text(name, inputs[name])]
    texts: list[str] = []
    for name in dict.fromkeys(named):
        source = _link(inputs[name])
        own = _texts(nodes, source, role, seen) if source else [str(inputs[name]).strip()]
        texts += [text for text in own if text and text not in texts]
    if texts:
        if any("encode" in word for word in (node["class_type"].lower(),)):
            return _without_parts(texts)
        separator = next(
            (str(inputs[name]) for name in _SEPARATORS if isinstance(inputs.get(name), str)), None
        )
        return [_joined(texts, separator if separator is not None else " ")] if len(texts) > 1 else texts
    if (source := _link(inputs.get(role))) is not None:  # a node with both, such as a ControlNet
        return _texts(nodes, source, role, seen)
    other = "negative" if role == "positive" else "positive"
    for name, source in _links(node):
        if name not in _NO_TEXT and name != other:
            texts += [text for text in _texts(nodes, source, role, seen) if text not in texts]
    return texts


def _is_text(name: str, value: Any) -> bool:
    if name not in _TEXTS:
        return False
    return isinstance(value, str) or _link(value) is not None


def _without_parts(texts: list[str]) -> list[str]:
    """Return the texts of several text encoders without those that another one contains."""
    return [text for text in texts if not any(text != other and text in other for other in texts)]


def _joined(texts: list[str], separator: str) -> str:
    return " ".join(separator.replace("\\n", "\n").join(texts).split())


def _seed(nodes: Graph, sampler: Node) -> int | None:
    """Return the seed of a sampler, or of the node with its noise or number."""
    key: Any = sampler
    for _ in range(8):
        inputs = key["inputs"]
        value = next(
            (inputs[name] for name in ("seed", "noise_seed", "noise", "value", "int") if name in inputs), None
        )
        if isinstance(value, int) and not isinstance(value, bool):
            return value if value >= 0 else None
        key = nodes.get(_link(value) or "")
        if key is None:
            return None
    return None


def _api_graph(workflow: Mapping[str, Any]) -> dict[str, Any]:
    """Return a workflow of the editor as the API has it; texts and numbers of widgets get plain names."""
    sources = {}
    for link in workflow.get("links", []):
        if isinstance(link, list) and len(link) >= 5:
            sources[link[0]] = [str(link[1]), link[2]]
        elif isinstance(link, dict):
            sources[link.get("id")] = [str(link.get("origin_id")), link.get("origin_slot", 0)]
    graph = {}
    for node in workflow["nodes"]:
        if not isinstance(node, dict) or node.get("mode") in (2, 4):  # muted or bypassed
            continue
        inputs = _widgets(node)
        for slot in node.get("inputs") or []:
            if isinstance(slot, dict) and slot.get("link") in sources:
                inputs[str(slot.get("name"))] = sources[slot["link"]]
        graph[str(node.get("id"))] = {"class_type": str(node.get("type")), "inputs": inputs}
    return graph


def _widgets(node: Mapping[str, Any]) -> dict[str, Any]:
    values = node.get("widgets_values")
    if isinstance(values, dict):
        return dict(values)
    inputs: dict[str, Any] = {}
    if "sampler" in str(node.get("type")).lower() or "noise" in str(node.get("type")).lower():
        numbers = [value for value in values or [] if isinstance(value, int) and not isinstance(value, bool)]
        return {"seed": numbers[0]} if numbers else {}
    texts = [value for value in values or [] if isinstance(value, str)]
    for number, text in enumerate(texts[:4]):
        inputs["text" if number == 0 else f"text_{number + 1}"] = text
    return inputs if _holds_text(node) else {}


def _holds_text(node: Mapping[str, Any]) -> bool:
    kind = str(node.get("type")).lower()
    return any(word in kind for word in ("text", "string", "prompt", "encode", "primitive"))
