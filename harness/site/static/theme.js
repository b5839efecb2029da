// Uses the light or dark theme of the system until the reader chooses one. Runs before the page is painted.
(function () {
  "use strict";
  const root = document.documentElement;
  const kept = (function () {
    try { return localStorage.getItem("twinloss-theme"); } catch (_) { return null; }
  })();
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  function show(theme) {
    root.classList.toggle("dark", theme === "dark");
    root.classList.toggle("light", theme === "light");
  }

  show(kept || (dark.matches ? "dark" : "light"));
  if (!kept) dark.addEventListener("change", (event) => show(event.matches ? "dark" : "light"));

  document.addEventListener("DOMContentLoaded", function () {
    document.getElementById("theme").addEventListener("click", function () {
      const theme = root.classList.contains("dark") ? "light" : "dark";
      show(theme);
      try { localStorage.setItem("twinloss-theme", theme); } catch (_) { /* storage is not allowed */ }
    });
    for (const box of document.querySelectorAll(".show-quiet")) {
      box.addEventListener("change", () => document.body.classList.toggle("whole", box.checked));
    }
  });
})();
