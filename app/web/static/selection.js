// What is selected in a list: kept over refreshes of the region, counted, and shown beside the acts. Without it the same form works as it stands.
(() => {
  "use strict";

  const form = document.getElementById("bulk");
  if (!form) return;
  const told = form.querySelector("[data-picked]");
  const act = form.querySelector("[data-act]");
  const label = form.querySelector("[data-label]");
  const picked = new Set();
  let all = false;
  let filter = location.search;

  const boxes = () => [...document.querySelectorAll("input[data-pick]")];
  const every = () => document.querySelector("input[data-pick-all]");
  const page = () => document.querySelector("input[data-pick-page]");

  const show = () => {
    const rows = boxes();
    const here = rows.filter((box) => box.checked).length;
    const head = page();
    if (head) {
      head.hidden = false;
      head.disabled = all;
      head.checked = rows.length > 0 && here === rows.length;
      head.indeterminate = here > 0 && here < rows.length;
    }
    for (const box of rows) box.disabled = all;
    const text = all ? every().closest("label").textContent.replace("Select", "").trim() : `${here} selected`;
    told.hidden = false;
    if (told.textContent !== text) told.textContent = text;
    form.hidden = !all && here === 0;
    label.hidden = !act.value.endsWith("-label");
  };

  // A refresh brings the rows as the platform knows them, which is unselected.
  const restore = () => {
    if (location.search !== filter) { // another list
      filter = location.search;
      all = false;
    }
    const rows = boxes();
    const present = new Set(rows.map((box) => box.value));
    for (const id of picked) if (!present.has(id)) picked.delete(id);
    for (const box of rows) box.checked = picked.has(box.value);
    if (every()) every().checked = all;
    else all = false;
    show();
  };

  document.addEventListener("change", (event) => {
    const box = event.target;
    if (!(box instanceof HTMLInputElement || box instanceof HTMLSelectElement)) return;
    if (box.matches("[data-pick]")) {
      if (box.checked) picked.add(box.value);
      else picked.delete(box.value);
    } else if (box.matches("[data-pick-page]")) {
      for (const one of boxes()) {
        one.checked = box.checked;
        if (box.checked) picked.add(one.value);
        else picked.delete(one.value);
      }
    } else if (box.matches("[data-pick-all]")) {
      all = box.checked;
    } else if (box !== act) {
      return;
    }
    show();
  });

  document.addEventListener("htmx:after:swap", restore);
  // Coming back to the page, a browser may have ticked the boxes again by itself.
  window.addEventListener("pageshow", () => {
    for (const box of boxes()) if (box.checked) picked.add(box.value);
    all = Boolean(every()?.checked);
    show();
  });
  show();
})();
