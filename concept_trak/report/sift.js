// Filters and sorts the samples of a section, in the pages of audits and of a server. Without it they are all there, by rank.
for (const tools of document.querySelectorAll(".tools")) {
  const section = tools.closest("section");
  const [filter, group, order, count] = tools.querySelectorAll("input, select, output");
  const collator = new Intl.Collator("en", { numeric: true });
  const samples = [...section.querySelectorAll("li[data-groups]")].map((item) => {
    const { rank, certain, id, source, groups } = item.dataset;
    const caption = item.querySelector(".caption").textContent;
    const pairs = JSON.parse(groups);
    const text = [caption, id, source, ...pairs.map(([, value]) => value)].join(" ").toLowerCase();
    return { item, rank, certain, source, caption, text, groups: pairs.map((pair) => pair.join(" = ")) };
  });

  function sift() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const { item, text, groups } of samples)
      item.hidden = !words.every((word) => text.includes(word)) || !(group.value === "" || groups.includes(group.value));
    const shown = samples.filter(({ item }) => !item.hidden).length;
    count.value = words.length || group.value ? `${shown} of ${samples.length} shown` : "";
  }

  function sort() {
    const key = order.value;
    const sorted = [...samples].sort((a, b) => collator.compare(a[key], b[key]) || a.rank - b.rank);
    for (const { item } of sorted) item.parentElement.append(item);
  }

  for (const name of [...new Set(samples.flatMap(({ groups }) => groups))].sort(collator.compare))
    group.add(new Option(name, name));
  filter.addEventListener("input", sift);
  group.addEventListener("change", sift);
  order.addEventListener("change", sort);
  tools.hidden = samples.length === 0;
  sort(); // a browser that goes back has kept what was chosen
  sift();
}
