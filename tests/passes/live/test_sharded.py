"""fully_shard over two processes on the CPU."""

import socket

import pytest
import torch
from live_models import Stack, inputs
from torch import distributed, multiprocessing

import laurel_graph as lg

pytestmark = pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(), reason="needs gloo"
)
CONFIG = {"variant": "rw+lr", "rank": 2}


def train(model):
    optimizer = torch.optim.SGD(lg.trainable_parameters(model).values(), lr=0.1)
    for _ in range(2):
        model(inputs()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def work(rank, port, folder):
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        mesh = distributed.init_device_mesh("cpu", (2,))
        torch.manual_seed(0)
        model = Stack(2)
        lg.attach(model, lg.LaurelConfig(**CONFIG), inputs())
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        train(model)
        lg.save_adapter(model, f"{folder}/{rank}.safetensors")
        fresh = fully_shard(Stack(2), mesh=mesh)
        with pytest.raises(lg.LaurelError, match="sharded already"):
            lg.attach(fresh, lg.LaurelConfig(**CONFIG), inputs())
    finally:
        distributed.destroy_process_group()


def test_adapter_is_that_of_one_process_when_trained_sharded(tmp_path):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    multiprocessing.spawn(work, (port, str(tmp_path)), nprocs=2)
    torch.manual_seed(0)
    alone = Stack(2)
    start = {name: value.clone() for name, value in alone.state_dict().items()}
    lg.attach(alone, lg.LaurelConfig(**CONFIG), inputs())
    train(alone)
    for rank in range(2):
        fresh = Stack(2)
        fresh.load_state_dict(start)
        lg.load_adapter(fresh, tmp_path / f"{rank}.safetensors", inputs())
        torch.testing.assert_close(fresh(inputs()), alone(inputs()), rtol=1e-5, atol=1e-6)
