// Runs models on one of ONNX Runtime's JavaScript packages; speaks as worker.py does.
// node worker.cjs onnxruntime-node|onnxruntime-web FOLDER, where FOLDER/node_modules holds the package.
const { createRequire } = require("module");
const fs = require("fs");
const path = require("path");

const [name, folder] = process.argv.slice(2);
const answer = (line) => fs.writeSync(1, JSON.stringify(line) + "\n");
const arrays = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, int64: BigInt64Array, int32: Int32Array,
  uint8: Uint8Array, int8: Int8Array, bool: Uint8Array,
};

async function main() {
  console.log = console.error; // what runtimes print is no answer
  const asked = JSON.parse(fs.readFileSync(0, "utf-8"));
  let ort, version;
  try {
    const load = createRequire(path.join(path.resolve(folder), "package.json"));
    ort = load(name);
    version = ort.env.versions[name.replace("onnxruntime-", "")] || ort.env.versions.common;
  } catch (error) {
    answer({ absent: String(error.message).split("\n")[0] });
    return;
  }
  ort.env.logLevel = "error";
  if (ort.env.wasm) ort.env.wasm.numThreads = 1;
  answer({ version });
  for (const job of asked.jobs) {
    try {
      const session = await ort.InferenceSession.create(new Uint8Array(fs.readFileSync(job.model)));
      const feeds = {};
      for (const given of job.inputs) {
        const bytes = Buffer.from(given.data, "base64");
        const data = new arrays[given.dtype](new Uint8Array(bytes).buffer);
        feeds[given.name] = new ort.Tensor(given.dtype, data, given.shape);
      }
      const found = await session.run(feeds);
      const outputs = session.outputNames.map((output) => {
        const { type, data, dims } = found[output];
        const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
        return { dtype: type, shape: dims, data: bytes.toString("base64") };
      });
      answer({ outputs, precision: "" });
    } catch (error) {
      answer({ refused: String(error.message || error) });
    }
  }
}

main();
