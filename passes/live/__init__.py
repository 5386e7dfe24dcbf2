"""LAuReL in a live torch model, in place: the object keeps its class, its methods and its habits.

``capture`` runs the model on fake tensors, so that each add of the graph knows the very instruction it came from;
``bytecode`` puts a call in the place of that instruction, in a copy of the function; ``classes`` gives the block a
class of the same name that runs the copy; ``joins`` is what runs there.
"""
