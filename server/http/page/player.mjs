// The images between two seeds as an animation, there and back.

import { button, element } from "./dom.mjs";
import { dataUrl } from "./picture.mjs";

const FRAME_MS = 80;

/** An element, and `show(images)` once they are there. Plays by itself unless the system asks for less motion. */
export function player() {
  let images = [], at = 0, step = 1, timer = null;
  const picture = element("img", { alt: "The images from the first seed to the second" });
  const frame = element("input", { type: "range", min: 0, value: 0, step: 1, "aria-label": "Frame" });
  const toggle = button("Play", () => (timer === null ? play() : pause()));
  const whole = element("div", { class: "player", hidden: true }, picture, element("div", { class: "row" }, toggle, frame));

  function draw() {
    picture.src = dataUrl(images[at].encoded);
    frame.value = at;
  }

  function play() {
    toggle.textContent = "Pause";
    timer = setInterval(() => {
      if (!whole.isConnected) return pause();
      if (at + step < 0 || at + step >= images.length) step = -step;
      at += step;
      draw();
    }, FRAME_MS);
  }

  function pause() {
    clearInterval(timer);
    timer = null;
    toggle.textContent = "Play";
  }

  frame.addEventListener("input", () => {
    pause();
    at = Number(frame.value);
    draw();
  });
  return {
    element: whole,
    show(finished) {
      images = finished;
      whole.hidden = images.length < 2;
      if (whole.hidden) return;
      frame.max = images.length - 1;
      draw();
      if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play();
    },
  };
}
