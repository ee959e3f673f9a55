// Live: images a second and how full the network's batches are, from the server's counters.

import { readMetrics } from "./client.mjs";
import { countersIn, rates } from "./counters.mjs";
import { $ } from "./dom.mjs";
import { plural } from "./words.mjs";

const EVERY_MS = 1000;
const KEPT = 6;  // readings, from which images a second are told

/** Read the counters while the page is visible. Where they are refused, nothing is shown. */
export function startMeter() {
  let readings = [];
  async function read() {
    if (document.hidden) {
      readings = [];
      return;
    }
    try {
      const counters = countersIn(await readMetrics());
      readings = [...readings, { at: performance.now(), counters }].slice(-KEPT);
      if (readings.length > 1) show(rates(readings));
    } catch (error) {
      readings = [];
      if (error.field === "key") clearInterval(timer);  // /metrics needs a key that the page does not have
      $("meter").hidden = true;
    }
  }
  const timer = setInterval(read, EVERY_MS);
  read();
}

function show({ imagesPerSecond, occupancy, waiting }) {
  $("meter").hidden = false;
  $("meter-fill").value = occupancy ?? 0;
  const full = occupancy === null ? "Server idle" : `Batches ${Math.round(100 * occupancy)} % full`;
  const speed = imagesPerSecond > 0 && `${imagesPerSecond < 10 ? imagesPerSecond.toFixed(1) : Math.round(imagesPerSecond)} images/s`;
  $("meter-text").textContent = [full, speed, waiting > 0 && `${plural(waiting, "image")} waiting`].filter(Boolean).join(" · ");
}
