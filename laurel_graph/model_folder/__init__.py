"""A folder as a model: what ONNX Runtime GenAI's builder and optimum's exporter write.

Every command that takes an ``.onnx`` file takes such a folder too, and writes one: the graph rewritten, its weights,
tokenizer and configs carried over, and the library of our kernels inside it where the graph needs them, so
that ``onnxruntime_genai.Model(folder)`` runs it (:mod:`.layout` finds the graph, :mod:`.rewrite` writes).
"""

from .layout import Layout, folder_files, graph_path, is_folder, layout_of
from .rewrite import rewritten, writes_folder

__all__ = ["Layout", "folder_files", "graph_path", "is_folder", "layout_of", "rewritten", "writes_folder"]
