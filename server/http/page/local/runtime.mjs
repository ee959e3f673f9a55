// The network in onnxruntime-web: on the GPU where the browser has WebGPU, else on the CPU in WebAssembly.

// runtime: URL of a folder with onnxruntime-web's files. bytes: of network.onnx, a Uint8Array. facts: its channels,
// resolution and classes. Returns { network, provider }: the function that `sample` takes, and "WebGPU" or "WebAssembly".
export async function start(runtime, bytes, facts) {
  const [session, tensorOf, provider] = (await onGpu(runtime, bytes)) ?? (await onCpu(runtime, bytes));
  const shapes = {
    x: [1, facts.channels, facts.resolution, facts.resolution],
    c_noise: [1],
    onehot: [1, facts.classes],
  };
  const network = async (inputs) => {
    const feeds = {};
    for (const name of session.inputNames) feeds[name] = tensorOf(inputs[name], shapes[name]);
    const outputs = await session.run(feeds);
    return outputs[session.outputNames[0]].data;
  };
  return { network, provider };
}

// null where there is no GPU, or it does not take the network.
async function onGpu(runtime, bytes) {
  if (!navigator.gpu || !(await navigator.gpu.requestAdapter())) return null;
  try {
    return [...(await session(`${runtime}ort.webgpu.min.mjs`, runtime, bytes, "webgpu")), "WebGPU"];
  } catch (error) {
    console.warn(`WebGPU does not run this network: ${error.message}`);
    return null;
  }
}

const onCpu = async (runtime, bytes) => [...(await session(`${runtime}ort.wasm.min.mjs`, runtime, bytes, "wasm")), "WebAssembly"];

async function session(module, runtime, bytes, provider) {
  const ort = await import(module);
  ort.env.wasm.wasmPaths = runtime;
  ort.env.wasm.numThreads = 1; // more need a page that is isolated from other origins
  const made = await ort.InferenceSession.create(bytes, {
    executionProviders: [provider],
    logSeverityLevel: 3, // errors; it warns of weights that its own rewriting leaves over
  });
  return [made, (values, shape) => new ort.Tensor("float32", values, shape)];
}
