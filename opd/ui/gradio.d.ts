/** What Gradio gives to the script of a component. */
declare const element: any;
declare const props: any;
declare const server: any;
declare function trigger(event: string, data?: object): void;
declare function watch(prop: string, act: () => void): void;

/** plotly.js of this folder loads it. */
declare const Plotly: any;
interface Window {
  opdPlotly?: Promise<unknown>;
}
