// Line plots in plain SVG, and sliders, for the interactive figures.
window.twinloss = (function () {
  "use strict";
  const SPACE = "http://www.w3.org/2000/svg";
  const WIDTH = 420, HEIGHT = 262, LEFT = 52, RIGHT = 10, TOP = 24, BOTTOM = 40;

  function element(name, attributes, text) {
    const made = document.createElementNS(SPACE, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // Returns ticks at round numbers, which divide a range into about four parts.
  function ticks(low, high) {
    const rough = (high - low) / 4 || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((k) => k * power).find((each) => each >= rough);
    const made = [];
    for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) {
      made.push(Math.abs(at) < step * 1e-9 ? 0 : at);
    }
    return made;
  }

  function short(value) {
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(0) : String(+value.toPrecision(3));
  }

  // Draws curves {name, x, y, style} and a dashed line at `mark`. Stores the numbers on the paths, where tests read them.
  function plot(svg, { curves, mark, label, title, zero = true }) {
    const xs = curves.flatMap((curve) => curve.x);
    const ys = curves.flatMap((curve) => curve.y).filter(Number.isFinite);
    const x = [Math.min(...xs, 1e300), Math.max(...xs, -1e300)];
    const y = [Math.min(...ys, zero ? 0 : 1e300), Math.max(...ys, zero ? 0 : -1e300)];
    if (!(y[1] > y[0])) y[1] = y[0] + 1;
    const at = {
      x: (value) => LEFT + (WIDTH - LEFT - RIGHT) * (value - x[0]) / (x[1] - x[0] || 1),
      y: (value) => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - y[0]) / (y[1] - y[0]),
    };
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.replaceChildren(element("title", {}, title));
    for (const value of ticks(...y)) {
      svg.append(element("line", { class: "rule", x1: LEFT, x2: WIDTH - RIGHT, y1: at.y(value), y2: at.y(value) }));
      svg.append(element("text", { class: "tick", x: LEFT - 6, y: at.y(value) + 4, "text-anchor": "end" }, short(value)));
    }
    for (const value of ticks(...x)) {
      svg.append(element("text", { class: "tick", x: at.x(value), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" },
        short(value)));
    }
    svg.append(element("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: at.y(y[0]), y2: at.y(y[0]) }));
    svg.append(element("text", { class: "label", x: (LEFT + WIDTH) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, label));
    svg.append(element("text", { class: "label", x: 4, y: 10 }, title));
    for (const curve of curves) svg.append(line(curve, at));
    if (mark !== undefined) {
      svg.append(element("line", { class: "mark", x1: at.x(mark), x2: at.x(mark), y1: TOP, y2: HEIGHT - BOTTOM }));
    }
  }

  function line(curve, at) {
    const ends = curve.steps ? [-0.5, 0.5] : [0];
    const points = curve.x.flatMap((value, n) => ends.map((end) => [at.x(value + end), at.y(curve.y[n])]))
      .filter(([, y]) => Number.isFinite(y));
    const path = element("path", {
      class: `curve ${curve.style}`, "data-curve": curve.name, d: `M${points.map((p) => p.map((v) => v.toFixed(2))).join("L")}`,
    });
    path.values = { x: curve.x, y: curve.y };
    return path;
  }

  // Calls `draw` with the values of all sliders of a figure, immediately and whenever a slider moves.
  function sliders(figure, draw, shown = (value) => String(+value.toPrecision(4))) {
    const inputs = [...figure.querySelectorAll("input[type=range]")];
    const scales = { power2: (v) => Math.round(2 ** v), power10: (v) => 10 ** v };
    function update() {
      const values = {};
      for (const input of inputs) {
        values[input.name] = (scales[input.dataset.scale] || Number)(Number(input.value));
        const text = shown(values[input.name], input.name);
        input.parentElement.querySelector("output").textContent = text;
        input.setAttribute("aria-valuetext", text);
      }
      draw(values);
    }
    for (const input of inputs) input.addEventListener("input", update);
    update();
    return update;
  }

  // Fills the rows of a table. The cells store their numbers with full precision in `data-value`.
  function readout(figure, rows) {
    figure.querySelector("table.readout tbody").replaceChildren(...rows.map(function ([name, ...cells]) {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = name;
      row.append(head, ...cells.map(function (value) {
        const cell = document.createElement("td");
        const numbers = Array.isArray(value) ? value : [value];
        cell.dataset.value = JSON.stringify(value);
        cell.textContent = numbers.map((each) => String(Math.abs(each) < 1e-20 ? 0 : +each.toPrecision(5))).join(", ");
        return cell;
      }));
      return row;
    }));
  }

  // Creates buttons that show and hide curves; `styles` maps a name to the class of its line.
  function legend(figure, names, shown, update) {
    const box = figure.querySelector(".legend");
    box.replaceChildren(...names.map(function ({ name, title, style }) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = style;
      button.dataset.curve = name;
      button.textContent = title;
      button.setAttribute("aria-pressed", String(shown.has(name)));
      button.addEventListener("click", function () {
        if (!shown.delete(name)) shown.add(name);
        button.setAttribute("aria-pressed", String(shown.has(name)));
        update();
      });
      return button;
    }));
  }

  return { element, plot, sliders, readout, legend };
})();
