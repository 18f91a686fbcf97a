"use strict";
// Moves the progress, previews the picture, and filters the answer. Without it the page has a link to look again.
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
  let shown = 0;
  const items = document.querySelectorAll("#answer li[data-text]");
  for (const item of items) {
    item.hidden = !words.every((word) => item.dataset.text.includes(word));
    shown += item.hidden ? 0 : 1;
  }
  by("filter-count").textContent = words.length ? `${shown} of ${items.length} shown` : "";
}

if (by("waiting")) wait(by("waiting"));

if (by("filter")) {
  by("filter-field").hidden = false;
  by("filter").addEventListener("input", filter);
  filter(); // a browser that goes back has kept the words
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
