// Searches all pages. Every word must occur in the title, the kind or the text; matches in titles rank first.
(function () {
  "use strict";
  const box = document.getElementById("search");
  const list = document.getElementById("found");
  const root = document.body.dataset.root;
  const MOST = 12;
  let chosen = -1;

  function score(entry, words) {
    const title = entry.title.toLowerCase();
    const all = `${title} ${entry.kind} ${entry.text.toLowerCase()} ${entry.url}`;
    if (!words.every((word) => all.includes(word))) return 0;
    const exact = title === words.join(" ") ? 8 : 0;
    const kind = entry.kind === "loss" ? 2 : 0;
    return 1 + exact + kind + words.filter((word) => title.includes(word)).length * 3
      + (title.startsWith(words[0]) ? 2 : 0);
  }

  function find(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return [];
    return (window.twinlossIndex || [])
      .map((entry) => ({ entry, score: score(entry, words) }))
      .filter((found) => found.score)
      .sort((a, b) => b.score - a.score || a.entry.title.length - b.entry.title.length)
      .slice(0, MOST)
      .map((found) => found.entry);
  }

  function item(entry, n) {
    const made = document.createElement("li");
    made.id = `found-${n}`;
    made.setAttribute("role", "option");
    made.setAttribute("aria-selected", "false");
    made.dataset.url = root + entry.url;
    const title = document.createElement("b");
    title.textContent = entry.title;
    const kind = document.createElement("i");
    kind.textContent = entry.kind;
    made.append(title, " ", kind, document.createElement("br"), entry.text.slice(0, 110));
    made.addEventListener("mousedown", () => { location.href = made.dataset.url; });
    return made;
  }

  function show() {
    const found = find(box.value);
    list.replaceChildren(...found.map(item));
    list.hidden = !found.length;
    box.setAttribute("aria-expanded", String(!list.hidden));
    choose(found.length ? 0 : -1);
  }

  function choose(n) {
    chosen = n;
    [...list.children].forEach((each, k) => each.setAttribute("aria-selected", String(k === n)));
    if (n >= 0) {
      box.setAttribute("aria-activedescendant", `found-${n}`);
      list.children[n].scrollIntoView({ block: "nearest" });
    } else {
      box.removeAttribute("aria-activedescendant");
    }
  }

  function close() {
    list.hidden = true;
    box.setAttribute("aria-expanded", "false");
  }

  box.addEventListener("input", show);
  box.addEventListener("focus", show);
  box.addEventListener("blur", close);
  box.addEventListener("keydown", function (event) {
    const count = list.children.length;
    if (event.key === "Escape") { box.value = ""; close(); }
    if (event.key === "Enter" && chosen >= 0) location.href = list.children[chosen].dataset.url;
    if ((event.key === "ArrowDown" || event.key === "ArrowUp") && count) {
      event.preventDefault();
      choose((chosen + (event.key === "ArrowDown" ? 1 : count - 1)) % count);
    }
  });
  document.addEventListener("keydown", function (event) {
    if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      box.focus();
    }
  });
})();
