"""Load for any server of images (`fewstep bench serve`), and how many devices a load needs (`fewstep bench plan`)."""
