"use strict";
// Moves the progress, previews the picture, takes words out of the prompt, filters and sorts the answer. Without it the
// page asks and answers all the same, and has a link to look again.
const by = (id) => document.getElementById(id);

async function wait(section) {
  const words = section.dataset.words.split("|");
  const status = section.querySelector("[role=status]");
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 400));
    let question;
    try {
      const response = await fetch(`/questions/${section.dataset.question}`, { cache: "no-store" });
      question = await response.json();
      if (!response.ok) throw new Error(question.error);
    } catch (error) {
      status.textContent = `The server does not answer (${error.message}); trying again`;
      continue;
    }
    if (question.state === "done" || question.state === "failed") return location.reload();
    const text =
      question.state === "queued"
        ? `${question.ahead} question${question.ahead === 1 ? "" : "s"} before it`
        : `Step ${question.step || 1} of ${words.length}: ${words[(question.step || 1) - 1]}`;
    if (status.textContent !== text) status.textContent = text;
    section.querySelector("progress").value = question.step;
  }
}

function preview() {
  const [file] = by("picture").files;
  by("preview").hidden = !file;
  if (file) by("preview").src = URL.createObjectURL(file);
}

function filter() {
  const words = by("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const group = by("group").value;
  let shown = 0;
  const items = document.querySelectorAll("#answer li[data-text]");
  for (const item of items) {
    item.hidden =
      !words.every((word) => item.dataset.text.includes(word)) ||
      (group !== "" && !JSON.parse(item.dataset.groups).includes(group));
    shown += item.hidden ? 0 : 1;
  }
  by("filter-count").textContent = words.length || group ? `${shown} of ${items.length} shown` : "";
}

function listGroups() {
  const groups = new Set();
  for (const item of document.querySelectorAll("#answer li[data-groups]"))
    for (const group of JSON.parse(item.dataset.groups)) groups.add(group);
  for (const group of [...groups].sort()) by("group").add(new Option(group, group));
}

function sort() {
  const key = by("sort").value;
  const value = (item) => item.dataset[key];
  const order = (a, b) =>
    (key === "rank" || key === "certain" ? value(a) - value(b) : value(a).localeCompare(value(b))) ||
    a.dataset.rank - b.dataset.rank;
  for (const list of document.querySelectorAll("#answer ol")) list.append(...[...list.children].sort(order));
}

// The words of the prompt as buttons. `minus` is one phrase, so a word beside it extends it and any other replaces it.
function listWords() {
  const [prompt, minus] = [by("prompt").value, by("minus").value];
  const words = [...prompt.matchAll(/\S+/g)];
  const from = minus ? prompt.indexOf(minus) : -1;
  const left = words.map((word) => from >= 0 && word.index >= from && word.index < from + minus.length);
  const [first, last] = [left.indexOf(true), left.lastIndexOf(true)];
  const buttons = words.map((word, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = word[0];
    button.ariaPressed = String(left[i]);
    button.addEventListener("click", () => {
      let [a, b] = [i, i];
      if (first >= 0 && i >= first - 1 && i <= last + 1) [a, b] = [Math.min(first, i), Math.max(last, i)];
      if (left[i]) [a, b] = i === first ? [first + 1, last] : [first, i - 1];
      by("minus").value = a > b ? "" : prompt.slice(words[a].index, words[b].index + words[b][0].length);
      listWords();
      by("words").children[i].focus();
    });
    return button;
  });
  by("words").replaceChildren(...buttons);
  by("words").hidden = !buttons.length;
}

if (by("waiting")) wait(by("waiting"));

if (by("filter")) {
  for (const name of ["filter", "group", "sort"]) by(`${name}-field`).hidden = false;
  listGroups();
  by("filter").addEventListener("input", filter);
  by("group").addEventListener("change", filter);
  by("sort").addEventListener("change", sort);
  sort();
  filter(); // a browser that goes back has kept the words
}

if (by("prompt")) {
  for (const name of ["prompt", "minus"]) by(name).addEventListener("input", listWords);
  listWords();
}

const drop = document.querySelector(".drop");
by("picture").addEventListener("change", preview);
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // a picture that misses the field must not replace the page
    drop.classList.toggle("over-it", kind === "dragenter" || kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) {
      by("picture").files = event.dataTransfer.files;
      preview();
    }
  });
}
