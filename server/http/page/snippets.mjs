// The same request in curl, Python and JavaScript: each a program that runs as it is and needs nothing installed.

import { toJson } from "./request.mjs";

export const LANGUAGES = ["curl", "Python", "JavaScript"];

/** origin: of the server, such as http://127.0.0.1:8000. needsKey: the key is then read from $FEWSTEP_KEY. */
export function snippet(language, body, origin, needsKey) {
  const several = (body.n ?? 1) > 1;
  const what = {
    json: toJson(body), url: `${origin}/v1/generate`, needsKey, several,
    accept: several ? "application/zip" : "image/png", file: `fewstep-${body.seed}.${several ? "zip" : "png"}`,
  };
  return { curl, Python: python, JavaScript: javascript }[language](what);
}

function curl({ json, url, accept, file, needsKey }) {
  const key = needsKey ? ` -H "X-API-Key: $FEWSTEP_KEY"` : "";
  return `curl -f '${url}' -H 'Accept: ${accept}'${key} -o ${file} -d @- <<'JSON'
${json}
JSON
`;
}

function python({ json, url, accept, file, needsKey }) {
  const key = needsKey ? `, "X-API-Key": os.environ["FEWSTEP_KEY"]` : "";
  return `${needsKey ? "import os\n" : ""}import urllib.request

body = ${pythonText(json)}
request = urllib.request.Request("${url}", body.encode(), {"Accept": "${accept}"${key}})
with urllib.request.urlopen(request) as answer, open("${file}", "wb") as file:
    file.write(answer.read())
print("wrote ${file}, seed", answer.headers["X-Seed"])
`;
}

// JSON's escapes are Python's where no backslash is in the text; where one is, a raw string keeps it.
const pythonText = (json) => `r'''${json.replaceAll("'''", "\\u0027\\u0027\\u0027")}'''`;

function javascript({ json, url, accept, several, needsKey }) {
  const key = needsKey ? `, "X-API-Key": process.env.FEWSTEP_KEY` : "";
  return `const answer = await fetch("${url}", {
  method: "POST",
  headers: { "Content-Type": "application/json", Accept: "${accept}"${key} },
  body: String.raw\`${json.replaceAll("`", "\\u0060").replaceAll("${", "\\u0024{")}\`,
});
if (!answer.ok) throw new Error((await answer.json()).error.message);
const ${several ? "zip" : "image"} = await answer.blob(); // in a page: URL.createObjectURL(${several ? "zip" : "image"})
console.log(${several ? "zip" : "image"}.type, ${several ? "zip" : "image"}.size, "bytes, seed", answer.headers.get("X-Seed"));
`;
}
