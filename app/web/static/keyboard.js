// Keys on pages with rows: j and k move between them, Enter opens (it is a link that has the focus), x selects the row, / searches, ? tells the keys.
(() => {
  "use strict";

  const dialog = document.getElementById("keys");
  const search = () => document.querySelector("form[role=search] input[type=search]");
  const rows = () => [...document.querySelectorAll("[data-rows] a[data-row]")].filter((link) => link.offsetParent);

  const move = (step) => {
    const links = rows();
    if (!links.length) return;
    const held = document.activeElement?.closest("tr")?.querySelector("a[data-row]");
    const at = links.indexOf(held);
    const next = at < 0 ? (step > 0 ? 0 : links.length - 1) : Math.min(links.length - 1, Math.max(0, at + step));
    links[next].focus();
    links[next].closest("tr").scrollIntoView({ block: "nearest" });
  };

  const toggle = () => {
    const box = document.activeElement?.closest("tr")?.querySelector("input[data-pick]");
    box?.click();
  };

  const acts = {
    j: () => move(1),
    k: () => move(-1),
    x: toggle,
    "/": () => { search()?.focus(); search()?.select(); },
    "?": () => dialog?.showModal(),
  };

  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || dialog?.open) return;
    const typing = event.target.closest("input:not([type=checkbox]), select, textarea, [contenteditable]");
    if (typing) {
      if (event.key === "Escape" && typing === search()) {
        event.preventDefault(); // which would empty the field
        typing.blur();
      }
      return;
    }
    if (!Object.hasOwn(acts, event.key)) return;
    event.preventDefault();
    acts[event.key]();
  });

  for (const button of document.querySelectorAll("button[data-keys]")) {
    button.hidden = false;
    button.addEventListener("click", () => dialog?.showModal());
  }
})();
