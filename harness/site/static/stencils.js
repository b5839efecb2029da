// Plots the bending energy of a wave for both stencils of twinloss.reference.
(function () {
  "use strict";
  const SIZE = 33;
  const FREQUENCIES = Array.from({ length: 33 }, (_, k) => k / 64);
  const SHOWN_LINES = 9;
  const STENCILS = [
    { name: "compact", title: "compact", style: "c1", margin: 1, along: (u, at, step) => u(at + step) - 2 * u(at) + u(at - step) },
    { name: "wide", title: "wide", style: "c3", margin: 2,
      along: (u, at, step) => (u(at + 2 * step) - 2 * u(at) + u(at - 2 * step)) / 4 },
  ];
  // Has mean square 1 at every frequency, including the checkerboard at half a cycle per voxel.
  const wave = (f, i, j) => Math.SQRT2 * Math.cos(2 * Math.PI * f * (i + j) + Math.PI / 4);

  // Returns the mean of u_xx² + u_yy² + 2 u_xy² over the interior.
  function energy({ margin, along }, f, amplitude) {
    const field = new Float64Array(SIZE * SIZE);
    for (let n = 0; n < field.length; n++) field[n] = amplitude * wave(f, Math.floor(n / SIZE), n % SIZE);
    const u = (n) => field[n];
    let total = 0, count = 0;
    for (let i = margin; i < SIZE - margin; i++) {
      for (let j = margin; j < SIZE - margin; j++) {
        const at = i * SIZE + j;
        const mixed = (u(at + SIZE + 1) - u(at + SIZE - 1) - u(at - SIZE + 1) + u(at - SIZE - 1)) / 4;
        total += along(u, at, SIZE) ** 2 + along(u, at, 1) ** 2 + 2 * mixed ** 2;
        count++;
      }
    }
    return total / count;
  }

  const figure = document.getElementById("stencils");
  if (!figure) return;
  const shown = new Set(["compact", "wide"]);

  function draw({ frequency, amplitude }) {
    const stencils = STENCILS.filter((each) => shown.has(each.name));
    window.twinloss.plot(figure.querySelector("[data-plot=energy]"), {
      curves: stencils.map((each) => ({
        name: each.name, style: each.style, x: FREQUENCIES, y: FREQUENCIES.map((f) => energy(each, f, amplitude)),
      })),
      mark: frequency,
      label: "frequency f, cycles per voxel",
      title: "bending energy",
    });
    window.twinloss.readout(figure, stencils.map((each) => [each.title, energy(each, frequency, amplitude)]));
    grid(figure.querySelector("[data-plot=grid]"), frequency, amplitude);
  }

  // Draws the lines of the voxel grid, displaced by the field in both components.
  function grid(svg, f, amplitude) {
    const cell = 24, border = 30;
    svg.setAttribute("viewBox", `0 0 ${(SHOWN_LINES - 1) * cell + 2 * border} ${(SHOWN_LINES - 1) * cell + 2 * border}`);
    svg.replaceChildren(window.twinloss.element("title", {}, "the displaced grid"));
    const place = (i, j) => [i, j].map((at) => (border + cell * (at + amplitude * wave(f, i, j))).toFixed(1));
    for (let i = 0; i < SHOWN_LINES; i++) {
      for (const turned of [false, true]) {
        const points = Array.from({ length: SHOWN_LINES }, (_, j) => (turned ? place(j, i) : place(i, j)));
        svg.append(window.twinloss.element("path", { class: "grid", d: `M${points.join("L")}` }));
      }
    }
  }

  const update = window.twinloss.sliders(figure, draw);
  window.twinloss.legend(figure, STENCILS, shown, update);
})();
