// Plots the windows of the local cross-correlation along one axis, as in twinloss.reference.
(function () {
  "use strict";
  const KINDS = [
    { name: "rectangular", title: "rectangular", style: "c1", of: () => 1 },
    { name: "triangular", title: "triangular", style: "c3", of: (j, k) => ((k + 1) / 2 - Math.abs(j)) / ((k + 1) / 2) ** 2 },
    { name: "gaussian", title: "gaussian", style: "c5", of: (j, k) => Math.exp(-(j ** 2) * 9 / (2 * k ** 2)) },
  ];
  const figure = document.getElementById("windows");
  if (!figure) return;
  const shown = new Set(KINDS.map((kind) => kind.name));

  function draw({ size }) {
    const radius = (size - 1) / 2;
    const offsets = Array.from({ length: size + 2 }, (_, n) => n - radius - 1);
    const kinds = KINDS.filter((kind) => shown.has(kind.name));
    const weight = (kind, j) => (Math.abs(j) <= radius ? kind.of(j, size) : 0);
    window.twinloss.plot(figure.querySelector("svg"), {
      curves: kinds.map(function (kind) {
        const total = offsets.reduce((sum, j) => sum + weight(kind, j), 0);
        return { name: kind.name, style: kind.style, steps: true, x: offsets, y: offsets.map((j) => weight(kind, j) / total) };
      }),
      label: "offset j, voxels",
      title: "share of the weight",
    });
    const outwards = offsets.filter((j) => j >= 0 && j <= radius);
    window.twinloss.readout(figure, kinds.map((kind) => [kind.title, outwards.map((j) => weight(kind, j))]));
  }

  const update = window.twinloss.sliders(figure, draw);
  window.twinloss.legend(figure, KINDS, shown, update);
})();
