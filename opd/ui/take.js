(file) => {
  // `file` is what Gradio serves; where the browser asks no more, it is downloaded at once.
  Object.assign(document.createElement("a"), { href: file.url, download: file.orig_name }).click();
}
