"""A baseline for load.py: ONNX Runtime behind FastAPI, with the binary requests of the open inference
protocol.

PYTHON fastapi_onnx.py model.onnx PORT
"""

from __future__ import annotations

import json
import sys

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request, Response

NAMES = {"FP32": np.float32, "FP64": np.float64, "FP16": np.float16, "INT64": np.int64, "INT32": np.int32}
NAMES |= {"INT8": np.int8, "UINT8": np.uint8, "BOOL": np.bool_}


def main() -> None:
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    app = FastAPI()

    @app.post("/v2/models/m/infer")
    async def infer(request: Request) -> Response:
        body = await request.body()
        at = int(request.headers["inference-header-content-length"])
        inputs = {}
        for about in json.loads(body[:at])["inputs"]:
            size, kind = about["parameters"]["binary_data_size"], NAMES[about["datatype"]]
            inputs[about["name"]] = np.frombuffer(body, kind, size // kind().nbytes, at).reshape(
                about["shape"]
            )
            at += size
        arrays = session.run(None, inputs)
        listed = [
            {"name": name, "shape": array.shape, "parameters": {"binary_data_size": array.nbytes}}
            for name, array in zip(outputs, arrays, strict=True)
        ]
        head = json.dumps({"model_name": "m", "outputs": listed}).encode()
        headers = {"inference-header-content-length": str(len(head))}
        return Response(head + b"".join(array.tobytes() for array in arrays), headers=headers)

    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
