"""A baseline for load.py: ONNX Runtime behind MLServer, with the JSON requests of the open inference protocol
(over REST it takes no binary tensors).

PYTHON mlserver_onnx.py model.onnx PORT
"""

from __future__ import annotations

import asyncio
import socket
import sys

import onnxruntime
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse


class Onnx(MLModel):
    """A session of ONNX Runtime."""

    async def load(self) -> bool:
        self.session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        inputs = {one.name: NumpyCodec.decode_input(one) for one in payload.inputs}
        arrays = self.session.run(None, inputs)
        names = [output.name for output in self.session.get_outputs()]
        pairs = zip(names, arrays, strict=True)
        outputs = [NumpyCodec.encode_output(name, array) for name, array in pairs]
        return InferenceResponse(model_name=self.name, outputs=outputs)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


async def main() -> None:
    # One process, as the other servers: no pool of workers.
    settings = Settings(
        host="127.0.0.1",
        http_port=int(sys.argv[2]),
        grpc_port=free_port(),
        metrics_port=free_port(),
        parallel_workers=0,
        debug=False,
        logging_settings={"version": 1, "root": {"level": "WARNING"}},
    )
    model = ModelSettings(name="m", implementation=Onnx, parameters=ModelParameters(version="1"))
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(main())
