"use strict";

// Both images enlarged, always at the same place and by the same factor.
function createZoom() {
  const largest = 12;
  const dialog = document.getElementById("zoom");
  const images = [document.getElementById("zoom-left"), document.getElementById("zoom-right")];
  const level = document.getElementById("zoom-level");
  const pointers = new Map();
  // x and y: the point of the image, from 0 to 1, that is in the middle of its pane.
  const view = { factor: 1, x: 0.5, y: 0.5 };

  function scaleOf(image) {
    const pane = image.parentElement;
    const fit = Math.min(pane.clientWidth / image.naturalWidth, pane.clientHeight / image.naturalHeight);
    return fit * view.factor;
  }

  function clamp(value, shown, whole) {
    const margin = Math.min(0.5, shown / whole / 2);
    return Math.min(1 - margin, Math.max(margin, value));
  }

  function draw() {
    if (!dialog.open || !images.every((image) => image.naturalWidth)) return;
    for (const image of images) {
      const pane = image.parentElement;
      const width = image.naturalWidth * scaleOf(image);
      const height = image.naturalHeight * scaleOf(image);
      view.x = clamp(view.x, pane.clientWidth, width);
      view.y = clamp(view.y, pane.clientHeight, height);
      image.style.width = `${width}px`;
      image.style.height = `${height}px`;
      const left = pane.clientWidth / 2 - view.x * width;
      const top = pane.clientHeight / 2 - view.y * height;
      image.style.transform = `translate(${left}px, ${top}px)`;
    }
    level.textContent = `${Math.round(view.factor * 100)} %`;
  }

  function zoomTo(factor) {
    view.factor = Math.min(largest, Math.max(1, factor));
    draw();
  }

  function move(image, dx, dy) {
    const scale = scaleOf(image);
    view.x -= dx / (image.naturalWidth * scale);
    view.y -= dy / (image.naturalHeight * scale);
    draw();
  }

  // Zoom so that the point under the pointer stays where it is.
  function zoomAt(image, event, factor) {
    const box = image.parentElement.getBoundingClientRect();
    const dx = event.clientX - box.left - box.width / 2;
    const dy = event.clientY - box.top - box.height / 2;
    move(image, -dx, -dy);
    zoomTo(factor);
    move(image, dx, dy);
  }

  function spread() {
    const [first, second] = [...pointers.values()];
    return Math.hypot(first.x - second.x, first.y - second.y);
  }

  for (const image of images) {
    const pane = image.parentElement;
    image.addEventListener("load", draw);
    pane.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoomAt(image, event, view.factor * Math.exp(-event.deltaY / 400));
    }, { passive: false });
    pane.addEventListener("dblclick", (event) => zoomAt(image, event, view.factor > 1 ? 1 : 4));
    pane.addEventListener("pointerdown", (event) => {
      pane.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    });
    pane.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      const apart = pointers.size === 2 ? spread() : 0;
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
      if (pointers.size === 2 && apart > 0) zoomTo(view.factor * spread() / apart);
      else if (pointers.size === 1) move(image, event.clientX - before.x, event.clientY - before.y);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      pane.addEventListener(end, (event) => pointers.delete(event.pointerId));
    }
  }
  document.getElementById("zoom-in").addEventListener("click", () => zoomTo(view.factor * 1.5));
  document.getElementById("zoom-out").addEventListener("click", () => zoomTo(view.factor / 1.5));
  document.getElementById("zoom-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => pointers.clear());
  window.addEventListener("resize", draw);

  const keys = {
    "+": () => zoomTo(view.factor * 1.5),
    "=": () => zoomTo(view.factor * 1.5),
    "-": () => zoomTo(view.factor / 1.5),
    "0": () => zoomTo(1),
    "z": () => dialog.close(),
    "Z": () => dialog.close(),
    "ArrowLeft": () => move(images[0], 60, 0),
    "ArrowRight": () => move(images[0], -60, 0),
    "ArrowUp": () => move(images[0], 0, 60),
    "ArrowDown": () => move(images[0], 0, -60),
  };

  return {
    isOpen: () => dialog.open,
    open(left, right) {
      Object.assign(view, { factor: 1, x: 0.5, y: 0.5 });
      images[0].src = left;
      images[1].src = right;
      dialog.showModal();
      draw();
    },
    close: () => dialog.close(),
    key(event) {
      if (!keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
    },
  };
}
