// The network in onnxruntime-web: on the GPU where the browser has WebGPU, else on the CPU in WebAssembly.

// runtime: URL of the folder `dist` of the npm package onnxruntime-web. engine: URL of an engine folder of fewstep.
// Returns { facts, network, provider }: engine.json, the function that `sample` takes, "webgpu" or "wasm".
export async function load(runtime, engine) {
  const gpu = Boolean(navigator.gpu && (await navigator.gpu.requestAdapter()));
  const ort = await import(`${runtime}/${gpu ? "ort.webgpu.min.mjs" : "ort.wasm.min.mjs"}`);
  ort.env.wasm.wasmPaths = `${runtime}/`;
  ort.env.wasm.numThreads = 1; // more need a page that is isolated from other origins
  const answer = await fetch(`${engine}/engine.json`);
  if (!answer.ok) throw new Error(`${engine}/engine.json: HTTP ${answer.status}; is it an engine folder?`);
  const facts = await answer.json();
  if (facts.noise_version !== 1) throw new Error(`noise_version is ${facts.noise_version}; this page knows 1`);
  if (facts.extra) throw new Error("the network takes a latent beside the image, which this page does not make");
  const provider = gpu ? "webgpu" : "wasm";
  const session = await ort.InferenceSession.create(`${engine}/${facts.network}`, {
    executionProviders: [provider],
    logSeverityLevel: 3, // errors; it warns of weights that its own rewriting leaves over
  });
  const shapes = {
    x: [1, facts.channels, facts.resolution, facts.resolution],
    c_noise: [1],
    onehot: [1, facts.classes],
  };
  const network = async (inputs) => {
    const feeds = {};
    for (const name of session.inputNames) feeds[name] = new ort.Tensor("float32", inputs[name], shapes[name]);
    const outputs = await session.run(feeds);
    return outputs[session.outputNames[0]].data;
  };
  return { facts, network, provider };
}
