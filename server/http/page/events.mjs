// Server-sent events (WHATWG HTML, section 9.2) from the pieces of a body.

/** Yields { name, data } of each event, data parsed from JSON. chunks: an async iterable of Uint8Array. */
export async function* eventsOf(chunks) {
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of chunks) {
    text += decoder.decode(chunk, { stream: true });
    const blocks = text.split("\n\n");
    text = blocks.pop();  // not complete yet
    for (const block of blocks) {
      const event = parsed(block);
      if (event !== null) yield event;
    }
  }
}

function parsed(block) {
  let name = "message", data = "";
  for (const line of block.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    if (line.startsWith("data: ")) data += line.slice(6);
  }
  return data === "" ? null : { name, data: JSON.parse(data) };  // a comment keeps the connection open, and says nothing
}
