// What the server's own counters (GET /metrics) say of now.

const NAMES = {
  fewstep_images_total: "images", fewstep_image_rows_total: "rows", fewstep_padded_rows_total: "padding",
  fewstep_slots: "slots", fewstep_active_slots: "active", fewstep_waiting_images: "waiting",
};

/** Sums over all labels of the counters that the page shows. */
export function countersIn(text) {
  const sums = Object.fromEntries(Object.values(NAMES).map((name) => [name, 0]));
  for (const line of text.split("\n")) {
    const match = /^(\w+)(?:\{.*\})? ([^ ]+)$/.exec(line);
    if (match && match[1] in NAMES) sums[NAMES[match[1]]] += Number(match[2]);
  }
  return sums;
}

/**
 * readings: { at, counters }, at in milliseconds, at least two, the newest last. Images a second from the first to the
 * last, because they are counted when their request ends; the share of the rows of network calls that were images, null
 * where there was no call, from the last but one to the last.
 */
export function rates(readings) {
  const [first, last, before] = [readings[0], readings.at(-1), readings.at(-2).counters], now = last.counters;
  const rows = now.rows - before.rows, all = rows + now.padding - before.padding;
  return {
    imagesPerSecond: Math.max(0, now.images - first.counters.images) / ((last.at - first.at) / 1000),
    occupancy: all > 0 ? rows / all : null,
    waiting: now.waiting,
  };
}
