// What tests/server/test_openai_node.py asks of a server through the `openai` package: SCENE URL KEY, and the result as JSON.
const OpenAI = require("openai");
const [scene, baseURL, apiKey] = process.argv.slice(2);
const statuses = [];
const noted = async (...given) => {
  const answer = await fetch(...given);
  statuses.push(answer.status);
  return answer;
};
const client = new OpenAI({ baseURL, apiKey, fetch: noted, maxRetries: 9 }); // 2 may be too few on a busy machine
const boot = { prompt: "Ankle boot", seed: 7, num_inference_steps: 2 };

async function streamed(events) {
  const found = [];
  for await (const event of events) found.push([event.type, event.b64_json]);
  return found;
}

const scenes = {
  generate: async () => {
    const made = await client.images.generate({ ...boot, n: 2 });
    return { images: made.data.map((each) => each.b64_json), size: made.size, tokens: made.usage.total_tokens };
  },
  edit: async () => {
    const whole = await client.images.generate(boot);
    const image = await OpenAI.toFile(Buffer.from(whole.data[0].b64_json, "base64"), "boot.png", { type: "image/png" });
    const edited = await client.images.edit({ image, prompt: "Sandal", seed: 8, strength: 0.5 });
    return { before: whole.data[0].b64_json, after: edited.data[0].b64_json };
  },
  stream: async () => streamed(await client.images.generate({ prompt: "Bag", seed: 3, stream: true, partial_images: 3 })),
  models: async () => (await client.models.list()).data.map((each) => each.id),
};

scenes[scene]().then(
  (result) => console.log(JSON.stringify({ result, statuses })),
  (error) => {
    const { status, code, param, type, message } = error;
    console.log(JSON.stringify({ error: { name: error.constructor.name, status, code, param, type, message }, statuses }));
  },
);
