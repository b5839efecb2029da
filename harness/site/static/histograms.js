// Shows one precomputed joint histogram at a time, and plots the mutual information of all shifts.
(function () {
  "use strict";
  const figure = document.getElementById("histograms");
  if (!figure) return;
  const all = JSON.parse(figure.querySelector("script").textContent);
  const shifts = all.map((each) => (each.label === "itself" ? 0 : Number((each.label.match(/by (\d+) mm/) || [])[1])));
  const shifted = all.filter((_, n) => Number.isFinite(shifts[n]));

  function draw({ which }) {
    const chosen = all[which];
    const image = figure.querySelector("img");
    image.src = figure.dataset.folder + chosen.file;
    image.alt = `joint histogram with ${chosen.label}`;
    figure.querySelector("[data-read=label]").textContent = chosen.label;
    const read = figure.querySelector("[data-read=information]");
    read.textContent = chosen.information.toFixed(3);
    read.dataset.value = String(chosen.information);
    window.twinloss.plot(figure.querySelector("svg"), {
      curves: [{ name: "information", style: "c1", x: shifts.filter(Number.isFinite), y: shifted.map((each) => each.information) }],
      mark: Number.isFinite(shifts[which]) ? shifts[which] : undefined,
      label: "shift, mm",
      title: "mutual information, nats",
    });
  }

  window.twinloss.sliders(figure, draw, (value) => all[value].label);
})();
